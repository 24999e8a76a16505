"""Kernels near FlashAttention-2: memory-efficient attention (cutlass) and flashinfer."""

from __future__ import annotations

from dataclasses import replace

from roundoff.operators.attention.catalogue.flash import FA2
from roundoff.operators.attention.catalogue.table import add
from roundoff.operators.attention.recipe import Logits, RowSum, Tile, TileRule

__all__: list[str] = []

add(
    replace(
        FA2.forward,
        name="torch-cuda-efficient",
        doc="memory-efficient attention (cutlass): the scale in a multiplication of its own",
        source="ATen/native/transformers/cuda/mem_eff_attention, torch 2.13",
        # It rescales only where m rose; elsewhere the factor is 1, which changes no bit.
        logits=Logits("after"),
        tile=TileRule(((64, None, Tile(64, 64)), (128, None, Tile(128, 64)))),
    )
)
add(
    replace(
        FA2.forward,
        name="flashinfer",
        doc="flashinfer's kernels for sm80: l sums P after its cast, by a product with ones",
        source="flashinfer include/flashinfer/attention/prefill.cuh, 0.2",
        row_sum=RowSum("after"),
        # One of the tiles that it chooses from, by the shared memory that is free.
        tile=Tile(64, 128),
    )
)
