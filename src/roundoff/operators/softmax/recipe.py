"""`Recipe`: what a softmax kernel does at each of the places where kernels differ.

Letters: x (a row), m (running maximum), P = exp(x - m), l (row sum of P), y = P / l.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from roundoff.sites import INPUT, OPMATH, Accumulator, Element, Exponential, Place, Sited

__all__ = ["Normalise", "Recipe"]

ACCUMULATOR = Accumulator()
EXPONENTIAL = Exponential()


@dataclass(frozen=True, slots=True)
class Normalise:
    """How l is divided out, and the format of the result."""

    by: Literal["division", "reciprocal"] = "division"
    format: Element = OPMATH


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(Sited):
    """A softmax kernel's numerics as data.

    With `tile` None a first pass finds the row's maximum; otherwise rows are read in tiles of
    that many columns, and l is multiplied by exp(m_old - m) wherever the maximum rises. P is
    computed again from the last m to write y. `source` and `known` are as in attention.
    """

    name: str
    doc: str
    source: str = ""
    known: Literal["run", "read", "defined"] = "defined"
    exponential: Exponential = EXPONENTIAL
    maximum: Element = OPMATH
    factor: Element = OPMATH
    row_sum: Accumulator = ACCUMULATOR
    normalise: Normalise = Normalise()
    tile: int | None = None
    output: Element = INPUT

    SITES: ClassVar[Mapping[str, Place]] = {
        "argument": Place("exponential.argument", "the argument x - m of exp"),
        "approximation": Place(
            "exponential.approximation", "how exp is computed", ("exact", "sleef_u10", "fexp_u20")
        ),
        "exp": Place("exponential.format", "the result of exp"),
        "maximum": Place("maximum", "the running maximum m"),
        "factor": Place("factor", "the rescaling factor exp(m_old - m)"),
        "row_sum": Place("row_sum", "the running row sum l"),
        "normalise": Place("normalise.format", "P over l"),
        "output": Place("output", "the output's cast"),
    }
