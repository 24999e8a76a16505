"""Lines of a monitor: which count, where several trainings were watched into one run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["current"]

Record = dict[str, Any]


def current(records: Iterable[Record]) -> list[Record]:
    """The records, less the steps of a training that a later one has done again or done anew.

    A training is known by the time when it was `begun`. One that goes on from a checkpoint, or
    begins again, stands for all from its first step on. Records of something else all stay.

    >>> lines = [{"begun": "1", "step": s} for s in (0, 2, 4)] + [{"begun": "2", "step": 4}]
    >>> [(line["begun"], line["step"]) for line in current(lines)]
    [('1', 0), ('1', 2), ('2', 4)]
    """
    every, first = [*records], dict[str, int]()
    for line in filter(_is_live, every):
        first[line["begun"]] = min(line["step"], first.get(line["begun"], line["step"]))
    ends = {begun: min((s for b, s in first.items() if b > begun), default=None) for begun in first}

    def counts(line: Record) -> bool:
        end = ends[line["begun"]] if _is_live(line) else None
        return end is None or line["step"] < end

    return [line for line in every if counts(line)]


def _is_live(line: Record) -> bool:
    return isinstance(line.get("begun"), str) and isinstance(line.get("step"), int)
