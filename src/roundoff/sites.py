"""Sites: named places at which a kernel rounds, and what a kernel may do there.

Everything here is a frozen value without arithmetic; `roundoff.operators.arithmetic`
carries the choices out. A recipe of any operator is built from these.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from roundoff.formats import FORMATS, Format

__all__ = ["INPUT", "Accumulator", "Choice", "Quantizer", "Site", "resolve", "wire"]

INPUT: Literal["input"] = "input"
"""Stands for the storage format of the call's inputs, until `resolve` puts it in."""

Element = Format | Literal["input"]
Order = Literal["library", "reversed", "native", "lanes", "softmax"]


@dataclass(frozen=True, slots=True)
class Accumulator:
    """How a sum is carried: of a matrix product over its inner axis, or of a row.

    `format` is what the running value is stored in; `chunk` how many terms are added
    between two such roundings (None: all of them, one rounding at the end).

    `order` is the order of additions:

    - `library`: as torch's routine for the carrying dtype does it on this machine;
    - `reversed`: the same on the terms from last to first;
    - `native`: torch's own routine for tensors of `format` (a 16-bit GEMM);
    - `lanes`: rows only; `lanes` partial sums side by side, then halves onto halves, then
      the tail one by one, as a vector unit does;
    - `softmax`: rows only; inside `torch.softmax`.
    """

    format: Element = FORMATS["fp32"]
    chunk: int | None = None
    order: Order = "library"
    rounding: str = "nearest"
    lanes: int = 16


@dataclass(frozen=True, slots=True)
class Quantizer:
    """How a tensor is put into a narrow format.

    `scale` says what is divided out first and multiplied back after the rounding: `none`;
    `fixed`, the constant `factor` (values times `factor` are rounded); or one factor a
    `tensor` or a `block` of `block` neighbours along `axis`, so that the largest magnitude
    becomes the format's maximum.
    """

    element: Element
    scale: Literal["none", "fixed", "tensor", "block"] = "none"
    factor: float = 1.0
    block: int | None = None
    axis: int = -2


Choice = Any
"""What a kernel does at a site: a `Format`, an `Accumulator`, a `Quantizer`, or a frozen
value of the operator's own (a rule of the maximum, an exponential, ...)."""


@dataclass(frozen=True, slots=True)
class Site:
    """A named place at which a kernel rounds.

    `choice` is what this recipe does there; `alternatives` are the other choices that
    are meaningful; the first of them is the exact one, which takes the site's
    rounding away.
    """

    name: str
    doc: str
    choice: Choice
    alternatives: tuple[Choice, ...] = ()


def resolve(value: Any, storage: Format) -> Any:
    """Put the storage format in for every `INPUT` inside a (nested) frozen value.

    >>> resolve(Accumulator(INPUT), FORMATS["bf16"]).format.name
    'bf16'
    """
    if value is INPUT or value == INPUT:
        return storage
    if isinstance(value, Format) or not dataclasses.is_dataclass(value):
        return value
    changes = {f.name: resolve(getattr(value, f.name), storage) for f in dataclasses.fields(value)}
    return dataclasses.replace(value, **changes)  # type: ignore[type-var]


def wire(value: Any) -> Any:
    """A (nested) frozen value as plain JSON data: what a fingerprint is taken of.

    >>> wire(Accumulator(INPUT, chunk=32))["chunk"]
    32
    """
    if isinstance(value, Format):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if dataclasses.is_dataclass(value):
        kind = {"kind": type(value).__name__}
        return kind | {f.name: wire(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [wire(item) for item in value]
    return value
