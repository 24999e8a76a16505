"""torch's own kernels that run on a CPU: the math back-end and flash attention."""

from __future__ import annotations

from dataclasses import replace

from roundoff.operators.attention.backward_recipe import Backward, Scaled, Tiles
from roundoff.operators.attention.catalogue.table import add
from roundoff.operators.attention.recipe import (
    Exponential,
    Logits,
    Normalise,
    Prescale,
    Recipe,
    RowSum,
    Tile,
)
from roundoff.sites import INPUT, OPMATH, Accumulator, ByStorage

__all__ = ["TORCH_MATH"]

TORCH_MATH = add(
    Recipe(
        name="torch-math",
        doc="torch's math back-end: fp32 throughout, one cast at the end",
        source="ATen/native/transformers/attention.cpp, torch 2.13",
        known="run",
        prescale=Prescale("qk"),
        logits=Logits("before"),
        row_sum=RowSum("before", Accumulator(order="softmax")),
        probabilities=OPMATH,
        normalise=Normalise("block"),
        backward=Backward(
            weights="saved",
            probabilities=OPMATH,
            delta="weights",
            delta_sum=Accumulator(order="softmax"),
            ds=OPMATH,
            heads=OPMATH,
        ),
    )
)
add(
    replace(
        TORCH_MATH,
        name="torch-math-reduced",
        doc="torch's math back-end with 16-bit intermediate tensors (the default before mid-2024)",
        prescale=Prescale("qk", INPUT),
        qk=Accumulator(INPUT, order="native"),
        scores=INPUT,
        logits=Logits("before", INPUT),
        probabilities=INPUT,
        pv=Accumulator(INPUT, order="native"),
        backward=Backward(
            weights="saved",
            dp=Accumulator(INPUT, order="native"),
            delta="weights",
            delta_sum=Accumulator(order="softmax"),
            scaled=Scaled("sums", INPUT),
            dq=Accumulator(INPUT, order="native"),
            dk=Accumulator(INPUT, order="native"),
            dv=Accumulator(INPUT, order="native"),
        ),
    )
)
_ONTO_INPUT = Accumulator(INPUT, order="native", rounds="update")
add(
    Recipe(
        name="torch-cpu-flash",
        doc="torch's CPU flash attention: keys in tiles of 512, polynomial exp, fp32 state",
        source="ATen/native/cpu/FlashAttentionKernel.cpp, torch 2.13, AVX-512",
        known="run",
        exponential=Exponential(
            approximation=ByStorage("fexp_u20", "exp_u20", "exact"), scalar="rounded", tail=16
        ),
        row_sum=RowSum("before", Accumulator(order="lanes", lanes=16)),
        pv=Accumulator(order="fused"),
        normalise=Normalise("end", "reciprocal"),
        tile=Tile(512),
        backward=Backward(
            exponential=Exponential(approximation=ByStorage("sleef_u10", "sleef_u10", "exact")),
            delta_sum=Accumulator(order="vector", lanes=ByStorage(32, 16, 8)),
            scaled=Scaled("products"),
            dq=_ONTO_INPUT,
            dk=_ONTO_INPUT,
            dv=_ONTO_INPUT,
            heads=None,
            tile=Tiles(
                (
                    (2**31, 768, Tile(512, 256)),
                    (2**31, 192, Tile(512, 64)),
                    (2**31, 0, Tile(512, 32)),
                )
            ),
        ),
    )
)
