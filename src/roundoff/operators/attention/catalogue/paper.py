"""Definitions of ours in one format: every operation rounded, without tiles and with them."""

from __future__ import annotations

from dataclasses import replace

from roundoff.formats import FORMATS, Format
from roundoff.operators.attention.backward_recipe import Backward, Scaled
from roundoff.operators.attention.catalogue.table import RECIPES, add
from roundoff.operators.attention.recipe import (
    Exponential,
    Logits,
    Maximum,
    Normalise,
    Recipe,
    RowSum,
    Tile,
)
from roundoff.sites import Accumulator

__all__ = ["all_in", "tiled_in"]


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
        backward=replace(_backward_in(format), weights="saved", delta="weights"),
    )


def tiled_in(format: Format) -> Recipe:
    """Flash attention with every intermediate result and the whole state stored in `format`."""
    return replace(
        all_in(format),
        name=f"paper-{format.name}",
        doc=f"flash attention with every result and the whole state stored in {format.name}",
        normalise=Normalise("end", "division", format),
        tile=Tile(64),
        backward=replace(_backward_in(format), tile=Tile(64, 64)),
    )


def _backward_in(format: Format) -> Backward:
    total = Accumulator(format)
    return Backward(
        lse=format,
        qk=total,
        scores=format,
        logits=Logits("after", format),
        exponential=Exponential(argument=format, format=format),
        probabilities=format,
        dp=total,
        delta_sum=total,
        difference=format,
        ds=format,
        scaled=Scaled("ds", format),
        dq=total,
        dk=total,
        dv=total,
        heads=format,
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
