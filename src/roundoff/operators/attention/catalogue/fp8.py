"""Attention in FP8: the rows of FlashAttention-3's Table 3, and its tensor cores' narrow sums."""

from __future__ import annotations

from dataclasses import replace

from roundoff.formats import FORMATS, Format
from roundoff.operators.attention.catalogue.flash import FA2
from roundoff.operators.attention.catalogue.table import add
from roundoff.operators.attention.recipe import Operands, Recipe, Tile, TileRule
from roundoff.sites import Accumulator, Quantizer

__all__ = ["CORES", "E4M3"]

E4M3 = FORMATS["e4m3fn"]


def _fp8(name: str, doc: str, operands: Operands, base: Recipe) -> Recipe:
    return replace(
        base, name=name, doc=doc, operands=operands, known="read",
        probabilities=Quantizer(E4M3, "fixed", factor=256.0),
        source="arXiv 2407.08608, section 3.3 and Table 3",
        backward=None,
    )  # fmt: skip


_PER_TENSOR = Quantizer(E4M3, "tensor")
_PER_BLOCK = Quantizer(E4M3, "block", block=128)
_TENSOR, _BLOCK = (Operands(how, how, how, rotate=True) for how in (_PER_TENSOR, _PER_BLOCK))
# hopper/tile_size.h, 2.8
FA3_FP8 = replace(FA2, tile=TileRule((
    (64, None, Tile(160, 192, "backward")),
    (96, None, Tile(128, 192, "backward")),
    (128, None, Tile(224, 128, "backward")),
    (192, None, Tile(160, 128, "backward")),
    (256, None, Tile(128, 128, "backward")),
)))  # fmt: skip

FP22 = Format("e8m13", 8, 13, 127)
CORES = Accumulator(FP22, chunk=32, rounding="toward-zero", rounds="update", aligned=True)
"""FP8 sums in Hopper's tensor cores, as arXiv 2412.19437 (section 3.5.2) measured them."""

add(_fp8("fp8-per-tensor", "whole rows, Q, K, V in e4m3 with one scale a tensor, P in e4m3",
         Operands(_PER_TENSOR, _PER_TENSOR, _PER_TENSOR), replace(FA2, tile=Tile())))  # fmt: skip
add(_fp8("fa3-fp8", "FlashAttention-3 in FP8: scales per block, Q and K rotated", _BLOCK, FA3_FP8))
add(_fp8("fa3-fp8-no-blocks", "FlashAttention-3 in FP8 with one scale a tensor", _TENSOR, FA3_FP8))
add(_fp8("fa3-fp8-no-rotation", "FlashAttention-3 in FP8 without incoherent processing",
         Operands(_PER_BLOCK, _PER_BLOCK, _PER_BLOCK), FA3_FP8))  # fmt: skip
add(_fp8("fa3-fp8-cores", "fa3-fp8 with the sums of tensor cores: 14 bits, cut off", _BLOCK,
         replace(FA3_FP8, qk=CORES, pv=CORES)))  # fmt: skip
