"""Is one side the other, cast to a narrower format? Decided block by block, bit by bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from roundoff.formats import FORMATS, round_to

__all__ = ["Cast", "CastWatch"]

Side = Literal["A", "B"]
Mode = Literal["nearest", "truncated", "either", "exact"]
_MODES: dict[Mode, Literal["nearest", "toward-zero"]] = {
    "nearest": "nearest", "truncated": "toward-zero",
}  # fmt: skip
_FIRST = 4096
"""Elements that are looked at before a whole block is rounded."""


@dataclass(frozen=True, slots=True)
class Cast:
    """`side` is the other side cast to `format`: to nearest, cut off, either (both
    give the same bits here), or without any loss.

    >>> str(Cast("B", "bf16", "nearest"))
    'B is A cast to bf16 (nearest)'
    """

    side: Side
    format: str
    mode: Mode

    def __str__(self) -> str:
        other = "A" if self.side == "B" else "B"
        how = {"exact": "nothing is lost", "either": "nearest or truncated"}.get(
            self.mode, self.mode
        )
        return f"{self.side} is {other} cast to {self.format} ({how})"


class CastWatch:
    """All casts that the blocks seen so far allow.

    >>> x = torch.tensor([1.007, -2.001])
    >>> watch = CastWatch(torch.float32, torch.bfloat16)
    >>> watch.add(x, x.bfloat16())
    >>> str(watch.found(differ=True))
    'B is A cast to bf16 (nearest)'
    """

    def __init__(self, a: torch.dtype, b: torch.dtype) -> None:
        self.same = a == b
        self._lossless = not self.same
        ways: list[tuple[Side, torch.dtype, torch.dtype]] = [("B", a, b), ("A", b, a)]
        self._left = [
            Cast(side, format, mode)
            for side, source, target in ways
            for format in _targets(source, target)
            for mode in _MODES
        ]

    def add(self, a: Tensor, b: Tensor) -> None:
        """Take in a block of both sides, flat."""
        self._lossless = self._lossless and bool(self._left) and _equal(a, b)
        for size in (_FIRST, a.numel()):
            self._left = [cast for cast in self._left if _holds(cast, a[:size], b[:size])]
            if not self._left or size >= a.numel():
                return

    def found(self, *, differ: bool) -> Cast | None:
        """The cast that explains all blocks; None if there is none, or the sides are the same."""
        if not self._left or (self.same and not differ):
            return None
        first = self._left[0]
        if self._lossless:
            return Cast(first.side, first.format, "exact")
        modes = {cast.mode for cast in self._left if (cast.side, cast.format) == _kind(first)}
        return Cast(*_kind(first), "either") if len(modes) > 1 else first


def _kind(cast: Cast) -> tuple[Side, str]:
    return cast.side, cast.format


def _equal(a: Tensor, b: Tensor) -> bool:
    a, b = a.double(), b.double()
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _targets(source: torch.dtype, target: torch.dtype) -> list[str]:
    if not (source.is_floating_point and target.is_floating_point):
        return []
    if source == target:
        return ["bf16", "fp16"] if source in (torch.float32, torch.float64) else []
    if target.itemsize > source.itemsize:
        return []
    return [name for name, format in FORMATS.items() if format.dtype == target][:1]


def _holds(cast: Cast, a: Tensor, b: Tensor) -> bool:
    source, target = (a, b) if cast.side == "B" else (b, a)
    carrier = torch.float64 if source.dtype is torch.float64 else torch.float32
    mode = _MODES[cast.mode]
    rounded, there = round_to(source.to(carrier), cast.format, mode=mode), target.to(carrier)
    return bool(((rounded == there) | (rounded.isnan() & there.isnan())).all())
