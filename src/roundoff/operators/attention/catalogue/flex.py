"""FlexAttention as torch.compile makes it: the C++ template for CPUs, Triton's for GPUs."""

from __future__ import annotations

from dataclasses import replace

from roundoff.operators.attention.catalogue.table import add
from roundoff.operators.attention.recipe import (
    Exponential,
    Logits,
    Normalise,
    Prescale,
    Recipe,
    RowSum,
    Tile,
    TileRule,
)
from roundoff.sites import INPUT, Accumulator, ByStorage

__all__: list[str] = []

add(
    Recipe(
        name="torch-flex",
        doc="compiled FlexAttention on a CPU: polynomial exp, tiles of 128 keys under a mask",
        source="torch/_inductor/codegen/cpp_flex_attention_template.py, torch 2.13, AVX-512",
        known="run",
        exponential=Exponential(approximation=ByStorage("exp_u20", "exp_u20", "exact"), tail=16),
        row_sum=RowSum("before", Accumulator(order="lanes", lanes=16)),
        pv=Accumulator(order="fused"),
        normalise=Normalise("end", "reciprocal"),
        # Without a mask, its blocks are larger than any length.
        tile=TileRule(((1024, True, Tile(128, 128, "cut-first")), (1024, False, Tile()))),
    )
)

GPU = add(
    Recipe(
        name="flex-gpu",
        doc="compiled FlexAttention on a GPU: scale and log2(e) in multiplications of their own",
        source="torch/_inductor/kernel/flex/templates, torch 2.13 (tiles of sm90)",
        known="read",
        # log2(e) goes onto S before the maximum; here onto S - m, one fp32 rounding elsewhere.
        exponential=Exponential("2"),
        tile=TileRule((
            (64, None, Tile(128, 128)), (128, None, Tile(64, 128)), (256, None, Tile(32, 64)),
        )),
    )
)  # fmt: skip
add(
    replace(
        GPU,
        name="flex-gpu-prescale",
        doc="FlexAttention on a GPU with PRESCALE_QK: Q times scale and log2(e) is rounded again",
        prescale=Prescale("q", INPUT),
        logits=Logits("before"),
        exponential=Exponential("2", log2e="scale"),
    )
)
