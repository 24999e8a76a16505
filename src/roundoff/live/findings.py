"""What stands out among readings: the first module with a NaN, and heads beyond their recipe."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from roundoff.live.watch import Watch
from roundoff.records import Finding, Reading

__all__ = ["Findings"]

IN_A_ROW = 2
"""Samples in a row beyond the limit before a head is found: one may have met short rows only."""

SHARED = {"dk_ratio", "dv_ratio"}
"""Values that are one for all query heads of a key head."""

TELLING = {"nonfinite", "amax", "rmse"}
"""Values that say whether there is a NaN or an infinity."""


IN_ORDER = {"activations": "output", "attention": "attention"}
"""Kinds whose readings are in the order in which things ran, and what one of them is called."""


def bad_in(reading: Reading) -> bool:
    """Whether there is a NaN or an infinity in what was read."""
    sizes = (reading.values.get(name, 0.0) for name in ("amax", "rmse"))
    return bool(reading.values.get("nonfinite")) or not all(map(math.isfinite, sizes))


class Findings:
    """Looks at the readings of one sampled step after the other; `found` has each thing once."""

    def __init__(self, watches: Sequence[Watch]) -> None:
        self.found: list[Finding] = []
        self._watches = [watch for watch in watches if watch.of == "attention"]
        self._beyond: Counter[tuple[str, str]] = Counter()
        self._known: set[tuple[str, str]] = set()

    def look(self, step: int, readings: Sequence[Reading]) -> list[Finding]:
        """What these readings add."""
        fresh = [*self._nonfinite(step, readings)]
        heads = [reading for reading in readings if reading.of == "attention"]
        explained = self._explained(heads)
        for reading in heads:
            fresh.extend(self._of_head(step, reading, explained))
        self.found.extend(fresh)
        return fresh

    def _nonfinite(self, step: int, readings: Sequence[Reading]) -> list[Finding]:
        """Of each kind one, what ran in the model first; again once all of the kind is finite."""
        found: list[Finding] = []
        for of in dict.fromkeys([*IN_ORDER, *(reading.of for reading in readings)]):
            mine = [
                r for r in readings if r.of == of and not r.pooled and r.values.keys() & TELLING
            ]
            bad = [reading for reading in mine if bad_in(reading)]
            key = ("nonfinite", of)
            if mine and not bad:
                self._known.discard(key)
            elif bad and key not in self._known:
                self._known.add(key)
                found.append(_of_nonfinite(step, of, bad, len(mine)))
        return found

    def _explained(self, heads: Sequence[Reading]) -> set[tuple[str, str, float]]:
        """What a head whose own output is beyond the limit shares with others of its group."""
        return {
            (head.name, name, head.values[name])
            for head in heads
            if self._own_is_beyond(head)
            for name in SHARED & head.values.keys()
        }

    def _own_is_beyond(self, head: Reading) -> bool:
        limit = self._limit(head.name)
        return any(head.values.get(name, 0.0) > limit for name in ("ratio", "dq_ratio"))

    def _limit(self, name: str) -> float:
        """The least limit of the watches that the module fits."""
        return min((w.limit for w in self._watches if w.fits(name)), default=math.inf)

    def _of_head(
        self, step: int, reading: Reading, explained: set[tuple[str, str, float]]
    ) -> list[Finding]:
        found: list[Finding] = []
        for name, value in reading.values.items():
            if not name.endswith("ratio"):
                continue
            key = (reading.place, name)
            # A NaN is no ratio: it is found by what made it.
            another = (reading.name, name, value) in explained and not self._own_is_beyond(reading)
            beyond = value > self._limit(reading.name) and not another
            self._beyond[key] = self._beyond[key] + 1 if beyond else 0
            if self._beyond[key] == IN_A_ROW and key not in self._known:
                self._known.add(key)
                output = name.removesuffix("ratio").rstrip("_") or "out"
                why = f"error of {output} is {value:.3g} times what its recipe predicts"
                found.append(
                    Finding(
                        step, "deviation", reading.name, why,
                        head=reading.head, values={name: value},
                    )
                )  # fmt: skip
        return found


def _of_nonfinite(step: int, of: str, bad: Sequence[Reading], total: int) -> Finding:
    """The first of what ran in order; of other kinds how many, and one of them."""
    first = bad[0]
    if of in IN_ORDER:
        why = f"the first {IN_ORDER[of]} with NaN or infinity"
    else:
        why = f"NaN or infinity in {len(bad)} of {total} {of}" + ", this one too" * (len(bad) > 1)
    return Finding(step, "nonfinite", first.name, why, head=first.head, values=dict(first.values))
