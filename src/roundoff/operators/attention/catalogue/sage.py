"""SageAttention: Q and a smoothed K in INT8, P and V in fp16 or e4m3."""

from __future__ import annotations

from dataclasses import replace

from roundoff.formats import FORMATS, Format
from roundoff.operators.attention.catalogue.flash import FA2
from roundoff.operators.attention.catalogue.fp8 import CORES, E4M3
from roundoff.operators.attention.catalogue.table import add
from roundoff.operators.attention.recipe import Logits, Operands, RowSum, Tile
from roundoff.sites import Accumulator, Quantizer

__all__ = ["INT8"]

FP16, FP32 = FORMATS["fp16"], FORMATS["fp32"]

INT8 = Format("int8", 1, 6, bias=-5, specials="none")
"""The whole numbers from -127 to 127: a format of one exponent is an integer grid."""

# Scales per warp: 32 queries, 64 keys. INT8 products are summed in int32, without an error;
# here they are fp32 sums of the values that the integers stand for.
_INT8 = Operands(
    q=Quantizer(INT8, "block", block=32), k=Quantizer(INT8, "block", block=64), smooth=True
)

SAGE = add(
    replace(
        FA2.forward,
        name="sage-fp16",
        doc="SageAttention for sm80: Q and smoothed K in INT8, P and V in fp16, l after the cast",
        source="SageAttention csrc/qattn, 2.2, arXiv 2411.10958",
        operands=replace(_INT8, v=Quantizer(FP16)),
        logits=Logits("after"),
        probabilities=FP16,
        row_sum=RowSum("after"),
        tile=Tile(64, 128),
    )
)
add(
    replace(
        SAGE,
        name="sage-fp16-narrow",
        doc="sage-fp16 with PV summed in fp16, a chunk of 16 keys at a time",
        pv=Accumulator(FP16, chunk=16),
    )
)
add(
    replace(
        SAGE,
        name="sage-fp8",
        doc="SageAttention 2 for sm89, sm90: P in e4m3, V by channel, tiles' sums in tensor cores",
        operands=replace(_INT8, v=Quantizer(E4M3, "line")),
        probabilities=Quantizer(E4M3, "fixed", factor=448.0),
        row_sum=RowSum("before"),
        pv=replace(CORES, rounds="operation", flushed=FP32),
    )
)
