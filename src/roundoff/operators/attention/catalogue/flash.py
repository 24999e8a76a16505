"""FlashAttention 2 to 4 in 16 bits: one set of numerics, many tiles; and variants of its state."""

from __future__ import annotations

from dataclasses import replace

from roundoff.formats import FORMATS
from roundoff.operators.attention.backward_recipe import Backward, Tiles
from roundoff.operators.attention.catalogue.table import add
from roundoff.operators.attention.recipe import (
    Exponential,
    Logits,
    Maximum,
    Normalise,
    Recipe,
    RowSum,
    Tile,
    TileRule,
)
from roundoff.sites import Accumulator

__all__ = ["FA2", "FA2_BACKWARD"]

_ANY = 0  # any number of queries
FA2_BACKWARD = Backward(
    logits=Logits("fma"),
    exponential=Exponential("2", log2e="scale"),
    dq=Accumulator(order="unordered"),
    dk=Accumulator(order="fused"),
    dv=Accumulator(order="fused"),
    tile=Tiles(
        (
            (64, _ANY, Tile(128, 128, "backward")),
            (128, _ANY, Tile(128, 64, "backward")),
            (256, _ANY, Tile(64, 64, "backward")),
        )
    ),
)
"""P again in base 2 from the LSE, D from the stored O, P and dS cast to the input's format, dK
and dV in registers over queries from last to first, dQ added up in fp32 in any order."""

FA2 = add(
    Recipe(
        name="fa2",
        doc="FlashAttention-2 in 16 bit, with the tiles of sm80 and sm90 (A100, H100)",
        source="flash-attention csrc/flash_attn/src, 2.8",
        known="read",
        logits=Logits("fma"),
        exponential=Exponential("2", log2e="scale"),
        normalise=Normalise("end", "reciprocal"),
        tile=TileRule(
            (
                (64, None, Tile(128, 128, "backward")),
                (96, None, Tile(64, 128, "backward")),
                (128, None, Tile(64, 128, "backward")),
                (256, None, Tile(64, 128, "backward")),
            )
        ),
        backward=FA2_BACKWARD,
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
        backward=replace(
            FA2_BACKWARD,
            tile=Tiles(
                (
                    (32, _ANY, Tile(128, 128, "backward")),
                    (96, _ANY, Tile(128, 64, "backward")),
                    (192, _ANY, Tile(64, 64, "backward")),
                    (256, _ANY, Tile(32, 64, "backward")),
                )
            ),
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
        backward=None,
    )
)
add(
    replace(
        FA2,
        name="fa2-lazy",
        doc="fa2 with FlashAttention-4's lazy maximum (rescale above a rise of 2^8)",
        maximum=Maximum("lazy", threshold=8.0),
        source="arXiv 2603.05451",
        backward=None,
    )
)
add(
    replace(
        FA2.forward,
        name="fa4",
        doc="FlashAttention-4 on sm100: lazy maximum, a cubic for four in sixteen exponentials",
        source="flash-attention flash_attn/cute, 4.0 beta; arXiv 2603.05451",
        maximum=Maximum("lazy", threshold=8.0),
        # The share of the cubic is tuned by head dim and release; the hardware takes the others.
        exponential=Exponential(
            "2", log2e="scale", approximation="cubic_exp2", columns=(16, 4)
        ),
        tile=Tile(128, 128, "backward"),
    )
)  # fmt: skip

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
