"""Attention whose operands are in microscaling formats: one scale for each 16 or 32 values.

Blocks lie along the axis that is summed: head dim for Q and K, keys for P and V.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from roundoff.formats import FORMATS
from roundoff.operators.attention.catalogue.flash import FA2
from roundoff.operators.attention.catalogue.table import add
from roundoff.operators.attention.recipe import Operands, Recipe, Tile
from roundoff.sites import Quantizer

__all__: list[str] = []

E4M3, E2M1 = FORMATS["e4m3fn"], FORMATS["e2m1"]


def _microscaled(
    name: str, doc: str, how: Quantizer, p: Quantizer, source: str,
    known: Literal["read", "defined"],
) -> Recipe:  # fmt: skip
    across = replace(how, axis=-1)
    return replace(
        FA2.forward, name=name, doc=doc, source=source, known=known, tile=Tile(128),
        operands=Operands(across, across, how), probabilities=replace(p, axis=-1),
    )  # fmt: skip


_OCP = "our reading of OCP Microscaling Formats 1.0: Q, K, V and P as a tensor core takes them"
for _name, _element in (("mxfp8", E4M3), ("mxfp4", E2M1)):
    _mx = Quantizer(_element, "line", block=32, scales="power")
    _doc = f"Q, K, V and P in {_element.name}, a power of two as scale of each 32"
    add(_microscaled(_name, _doc, _mx, _mx, _OCP, "defined"))

_NV = Quantizer(E2M1, "line", block=16, scales=E4M3)
add(
    _microscaled(
        "nvfp4",
        "Q, K, V and P in e2m1, an e4m3 scale for each 16 and one in fp32 a tensor",
        replace(_NV, two_level=True),
        # P is at most 1: a constant takes the place of the tensor's scale.
        replace(_NV, factor=E4M3.max * E2M1.max),
        "SageAttention 3, arXiv 2505.11594, section 3.2 (two-level scales of P)",
        "read",
    )
)
