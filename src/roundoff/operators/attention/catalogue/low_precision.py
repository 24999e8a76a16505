"""Where bf16 training fails (arXiv 2510.04212): its flash attention, and remedies for it."""

from __future__ import annotations

import math
from dataclasses import replace

from roundoff.formats import FORMATS
from roundoff.operators.attention.catalogue.flash import FA2, FA2_BACKWARD
from roundoff.operators.attention.catalogue.paper import tiled_in
from roundoff.operators.attention.catalogue.table import add
from roundoff.operators.attention.recipe import Maximum, RowSum
from roundoff.sites import Accumulator

__all__ = ["FAILURE"]

BF16, FP64 = FORMATS["bf16"], FORMATS["fp64"]
TIE_SAFE = Maximum("tie-safe")

FAILURE = add(
    replace(
        FA2,
        name="failure-bf16",
        doc="fa2 with running sum and output in bf16 between tiles, as arXiv 2510.04212 runs it",
        source="arXiv 2510.04212, on our reading of its code",
        known="defined",
        row_sum=RowSum("before", Accumulator(BF16)),
        pv=Accumulator(BF16),
    )
)
add(
    replace(
        FAILURE,
        name="failure-bf16-tie-safe",
        doc="failure-bf16 with another maximum on rows whose maximum is tied",
        maximum=TIE_SAFE,
    )
)
add(
    replace(
        FAILURE,
        name="failure-bf16-delta-weights",
        doc="failure-bf16 with D = rowsum(P dP) in place of rowsum(dO O)",
        backward=replace(FA2_BACKWARD, delta="weights"),
    )
)
for _name, _doc, _powers in (
    ("failure-bf16-offset-half", "ln 2 too large, so that tied entries of P are 1/2", 1.0),
    (
        "failure-bf16-offset",
        "1 too large, so that tied entries of P are exp(-1)",
        math.log2(math.e),
    ),
):
    add(
        replace(
            FAILURE,
            name=_name,
            doc=f"failure-bf16 with a maximum that is {_doc}",
            maximum=Maximum("offset", threshold=_powers),
        )
    )
add(
    replace(
        tiled_in(FP64),
        name="tie-safe-fp64",
        doc="the maximum of arXiv 2510.04212 on tied rows, without any rounding",
        maximum=replace(TIE_SAFE, format=FP64, factor=FP64),
        output=FP64,
    )
)
