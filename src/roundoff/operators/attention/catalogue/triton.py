"""Triton's flash attention as its tutorial writes it, and as our own kernel does."""

from __future__ import annotations

from roundoff.formats import FORMATS
from roundoff.operators.attention.catalogue.table import add
from roundoff.operators.attention.recipe import Exponential, Logits, Recipe, Tile
from roundoff.sites import ByStorage

__all__: list[str] = []

FP16, FP32, FP64 = FORMATS["fp16"], FORMATS["fp32"], FORMATS["fp64"]

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
        probabilities=ByStorage(FP16, FP32, FP64),
        tile=Tile(64, 64),
    )
)
