"""The recipes by name: one declaration each. Names are shared with the kernels they describe."""

from __future__ import annotations

from dataclasses import replace

from roundoff.formats import FORMATS, Format
from roundoff.operators.attention.recipe import (
    Exponential,
    Logits,
    Maximum,
    Normalise,
    Operands,
    Prescale,
    Recipe,
    RowSum,
    Tile,
    TileRule,
)
from roundoff.registry import Registry
from roundoff.sites import INPUT, OPMATH, Accumulator, ByStorage, Quantizer, reordered

__all__ = ["RECIPES", "all_in", "reordered", "tiled_in"]

RECIPES: Registry[Recipe] = Registry("recipe")
E4M3 = FORMATS["e4m3fn"]


def add(recipe: Recipe) -> Recipe:
    """Register `recipe` under its own name."""
    return RECIPES.add(recipe.name, recipe)


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
    )
)
add(
    Recipe(
        name="torch-cpu-flash",
        doc="torch's CPU flash attention: keys in tiles of 512, polynomial exp, fp32 state",
        source="ATen/native/cpu/FlashAttentionKernel.cpp, torch 2.13, AVX-512",
        known="run",
        exponential=Exponential(approximation=ByStorage("fexp_u20", "exp_u20", "exact"), tail=16),
        row_sum=RowSum("before", Accumulator(order="lanes", lanes=16)),
        pv=Accumulator(order="fused"),
        normalise=Normalise("end", "reciprocal"),
        tile=Tile(512),
    )
)
FA2 = add(
    Recipe(
        name="fa2",
        doc="FlashAttention-2 in 16 bit, with the tiles of sm80 and sm90 (A100, H100)",
        source="flash-attention csrc/flash_attn/src, 2.8",
        known="read",
        logits=Logits("fma"),
        exponential=Exponential("2"),
        tile=TileRule(
            (
                (64, None, Tile(128, 128, "backward")),
                (96, None, Tile(64, 128, "backward")),
                (128, None, Tile(64, 128, "backward")),
                (256, None, Tile(64, 128, "backward")),
            )
        ),
    )
)
add(
    replace(
        FA2,
        name="fa2-sm86",
        doc="FlashAttention-2 with the tiles of consumer GPUs (sm86, sm89)",
        tile=TileRule(
            (
                (64, None, Tile(128, 128, "backward")),
                (96, None, Tile(64, 128, "backward")),
                (128, True, Tile(64, 64, "backward")),
                (128, False, Tile(32, 128, "backward")),
                (256, None, Tile(64, 64, "backward")),
            )
        ),
    )
)
add(
    replace(
        FA2,
        name="fa3",
        doc="FlashAttention-3 in 16 bit on sm90: FlashAttention-2's numerics in other tiles",
        source="flash-attention hopper/tile_size.h, 2.8",
        tile=TileRule(
            (
                (64, True, Tile(128, 192, "backward")),
                (64, False, Tile(192, 192, "backward")),
                (96, None, Tile(144, 192, "backward")),
                (128, True, Tile(128, 128, "backward")),
                (128, False, Tile(176, 128, "backward")),
                (192, None, Tile(112, 128, "backward")),
                (256, None, Tile(80, 128, "backward")),
            )
        ),
    )
)
add(
    Recipe(
        name="jax-xla",
        doc="jax.nn.dot_product_attention on XLA: fp32 softmax, normalised P cast to the input",
        source="jax/_src/nn/functions.py, jax 0.10",
        known="read",
        normalise=Normalise("block"),
        pv=Accumulator(INPUT),
    )
)


def all_in(format: Format) -> Recipe:
    """Attention without tiles in which the result of every operation is stored in `format`."""
    return Recipe(
        name=f"baseline-{format.name}",
        doc=f"whole rows, every intermediate result stored in {format.name}",
        source="our reading of arXiv 2405.02803 (which operation rounds is not stated there)",
        qk=Accumulator(format),
        scores=format,
        logits=Logits("after", format),
        exponential=Exponential(argument=format, format=format),
        maximum=Maximum(format=format, factor=format),
        probabilities=format,
        row_sum=RowSum("after", Accumulator(format)),
        pv=Accumulator(format),
        normalise=Normalise("block", "division", format),
    )


def tiled_in(format: Format) -> Recipe:
    """Flash attention with every intermediate result and the whole state stored in `format`."""
    return replace(
        all_in(format),
        name=f"paper-{format.name}",
        doc=f"flash attention with every result and the whole state stored in {format.name}",
        normalise=Normalise("end", "division", format),
        tile=Tile(64),
    )


for _name in ("bf16", "fp16", "tf32", "fp32", "fp64", "e4m3fn", "e5m2"):
    add(all_in(FORMATS[_name]))
    add(tiled_in(FORMATS[_name]))

add(
    replace(
        RECIPES["paper-bf16"],
        name="paper-bf16-tie-safe",
        source="arXiv 2510.04212, on our reading of arXiv 2405.02803",
        doc="paper-bf16 with the maximum of arXiv 2510.04212 on rows whose maximum is tied",
        maximum=Maximum("tie-safe", format=FORMATS["bf16"], factor=FORMATS["bf16"]),
    )
)
add(
    replace(
        FA2,
        name="fa2-lazy",
        doc="fa2 with FlashAttention-4's lazy maximum (rescale above a rise of 2^8)",
        maximum=Maximum("lazy", threshold=8.0),
        source="arXiv 2603.05451",
    )
)

BF16 = FORMATS["bf16"]
_NARROW_STATE = {
    "maximum": Maximum(format=BF16, factor=BF16),
    "row_sum": RowSum("before", Accumulator(BF16)),
    "pv": Accumulator(BF16),
}


def _narrow(name: str, doc: str, *parts: str) -> Recipe:
    """fa2 with these parts of its running state stored in bf16 between tiles."""
    changes = {part: _NARROW_STATE[part] for part in parts}
    source = "our reading of arXiv 2405.02803: only the state is narrow"
    return replace(FA2, name=name, doc=doc, source=source, known="defined", **changes)  # type: ignore[arg-type]


add(_narrow("fa2-bf16-state", "fa2 with running maximum, sum and output in bf16", *_NARROW_STATE))
add(_narrow("fa2-bf16-maximum", "fa2 with the running maximum alone in bf16", "maximum"))
add(_narrow("fa2-bf16-sum", "fa2 with the running sum alone in bf16", "row_sum"))
add(_narrow("fa2-bf16-output", "fa2 with the running output alone in bf16", "pv"))


def _fp8(name: str, doc: str, operands: Operands, base: Recipe) -> Recipe:
    return replace(
        base, name=name, doc=doc, operands=operands, known="read",
        probabilities=Quantizer(E4M3, "fixed", factor=256.0),
        source="arXiv 2407.08608, section 3.3 and Table 3",
    )  # fmt: skip


_PER_TENSOR = Quantizer(E4M3, "tensor")
_PER_BLOCK = Quantizer(E4M3, "block", block=128)
add(_fp8("fp8-per-tensor", "whole rows, Q, K, V in e4m3 with one scale a tensor, P in e4m3",
         Operands(_PER_TENSOR, _PER_TENSOR, _PER_TENSOR), replace(FA2, tile=Tile())))  # fmt: skip
add(_fp8("fa3-fp8", "FlashAttention-3 in FP8: scales per block, Q and K rotated",
         Operands(_PER_BLOCK, _PER_BLOCK, _PER_BLOCK, rotate=True),
         replace(FA2, tile=Tile(128))))  # fmt: skip
add(_fp8("fa3-fp8-no-blocks", "FlashAttention-3 in FP8 with one scale a tensor",
         Operands(_PER_TENSOR, _PER_TENSOR, _PER_TENSOR, rotate=True),
         replace(FA2, tile=Tile(128))))  # fmt: skip
add(_fp8("fa3-fp8-no-rotation", "FlashAttention-3 in FP8 without incoherent processing",
         Operands(_PER_BLOCK, _PER_BLOCK, _PER_BLOCK), replace(FA2, tile=Tile(128))))  # fmt: skip
