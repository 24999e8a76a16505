"""A logged series, and numbers as logs of all kinds spell them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["STEPS", "Collected", "Series", "collected", "number"]

STEPS = ("step", "global_step", "_step", "trainer/global_step", "iteration", "iter", "steps")
"""Names that the number of a step goes by, the likeliest first."""

NAN = {"nan", "+nan", "-nan", "n/a", "na", "null", "none", "1.#qnan", "-1.#ind", "1.#ind", "nan()"}
INFINITE = {"inf", "infinity", "1.#inf"}


@dataclass(frozen=True)
class Series:
    """The values of one name, in the order in which they were logged."""

    name: str
    points: tuple[tuple[int, float], ...]


def number(value: object) -> float | None:
    """A logged value as a number, in every spelling of NaN and the infinities; None: no number.

    JSON's null is a NaN, as JavaScript and pandas write one. An empty text was not logged.

    >>> number("NaN"), number("-Infinity"), number("1.5"), number(""), number("a word")
    (nan, -inf, 1.5, None, None)
    """
    if value is None:
        return math.nan
    if isinstance(value, str):
        return _spelled(value.strip().lower())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _spelled(word: str) -> float | None:
    if word in NAN:
        return math.nan
    if word.lstrip("+-") in INFINITE:
        return -math.inf if word.startswith("-") else math.inf
    try:
        return float(word)
    except ValueError:
        return None


@dataclass
class Collected:
    """Rows of a log, sorted into series as they come."""

    points: dict[str, list[tuple[int, float]]] = field(
        default_factory=dict[str, list[tuple[int, float]]]
    )
    rows: int = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Take in one row; its step is its own number where it has none."""
        said = [number(row.get(name, "")) for name in STEPS]
        step = next((int(at) for at in said if at is not None and math.isfinite(at)), self.rows)
        self.rows += 1
        for name, value in row.items():
            x = None if name in STEPS else number(value)
            if x is not None:
                self.put(name, step, x)

    def put(self, name: str, step: int, value: float) -> None:
        """Take in one value."""
        self.points.setdefault(name, []).append((step, value))

    def series(self) -> list[Series]:
        """All of them, in the order in which they came up first."""
        return [Series(name, tuple(points)) for name, points in self.points.items()]


def collected(rows: Iterable[Mapping[str, Any]]) -> list[Series]:
    """The series of rows."""
    found = Collected()
    for row in rows:
        found.add(row)
    return found.series()
