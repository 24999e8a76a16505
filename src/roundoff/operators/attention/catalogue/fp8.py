"""Attention in FP8: the rows of FlashAttention-3's Table 3."""

from __future__ import annotations

from dataclasses import replace

from roundoff.formats import FORMATS
from roundoff.operators.attention.catalogue.flash import FA2
from roundoff.operators.attention.catalogue.table import add
from roundoff.operators.attention.recipe import Operands, Recipe, Tile
from roundoff.sites import Quantizer

__all__: list[str] = []

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
