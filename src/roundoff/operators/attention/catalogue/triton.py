"""Triton's flash attention as its tutorial writes it, and as our own kernel does."""

from __future__ import annotations

from roundoff.formats import FORMATS
from roundoff.operators.attention.backward_recipe import Backward
from roundoff.operators.attention.catalogue.table import add
from roundoff.operators.attention.recipe import Exponential, Logits, Prescale, Recipe, Tile
from roundoff.sites import INPUT, ByStorage

__all__: list[str] = []

# fp16 even where the inputs are bf16.
WEIGHTS = ByStorage(FORMATS["fp16"], FORMATS["fp32"], FORMATS["fp64"])

# What remains beside Triton's interpreter: numpy's exp2 and its order of sums in rows and
# products; and m is kept in scaled scores, so that the factor exp2(m_old - m) is of a difference
# of two rounded products, where this recipe multiplies the difference.
add(
    Recipe(
        name="triton-tutorial",
        doc="flash attention as Triton's tutorial writes it: P in fp16 even for bf16 inputs",
        source="triton python/tutorials/06-fused-attention.py; run as our kernel "
        "(roundoff.kernels.triton_flash) in Triton's interpreter, 3.9",
        known="run",
        logits=Logits("fma"),
        exponential=Exponential("2", log2e="scale"),
        probabilities=WEIGHTS,
        tile=Tile(64, 64),
        # K is stored times the scale and log2(e); both tiles are of 32, of queries for dK and dV
        # and of keys for dQ, whose causal tiles of the diagonal are of 16.
        backward=Backward(
            prescale=Prescale("k", INPUT),
            logits=Logits("before"),
            exponential=Exponential("2", log2e="scale"),
            probabilities=WEIGHTS,
            ds=WEIGHTS,
            tile=Tile(32, 32),
        ),
    )
)
