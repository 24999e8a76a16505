"""From the lines of a run to experiments: which repeats belong together, and who takes part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from roundoff.report.figure import Names
from roundoff.store.json import canonical
from roundoff.training.verdict import BASELINE, steps_of

__all__ = ["BASELINE", "Trained", "trained_of"]

Line = Mapping[str, Any]
COUNTS = ("repeat", "repeats", "candidates", "yardsticks")
"""What repeats of one experiment may differ in: how many there are, and who else took part."""
PARTS = ("training", "log", "distances", "tensors", "direct")


@dataclass(frozen=True, slots=True)
class Trained:
    """One experiment: its repeats, and the arms by the part that they play."""

    lines: Sequence[Line]
    candidates: Sequence[str]
    yardsticks: Sequence[str]

    @property
    def experiment(self) -> Line:
        """What all repeats share: workload, baseline, format, steps, ..."""
        return cast("Line", self.lines[-1]["training"])

    @property
    def arms(self) -> list[str]:
        """Candidates, then yardsticks, each once."""
        return list(dict.fromkeys([*self.candidates, *self.yardsticks]))

    @property
    def names(self) -> Names:
        """Short names of the arms and of the baseline, which comes last."""
        return Names([*self.arms, BASELINE])

    @property
    def steps(self) -> list[int]:
        """The steps after which weights were compared."""
        return steps_of(self.lines)

    @property
    def repeats(self) -> int:
        """How many repeats went well."""
        return len({line["training"]["repeat"] for line in self.lines})


def trained_of(rows: Iterable[Line]) -> list[Trained]:
    """The experiments among the lines of a run, in order; lines of anything else are left out."""
    groups: dict[str, list[Line]] = {}
    for row in rows:
        if row.get("status") == "ok" and all(isinstance(row.get(p), dict) for p in PARTS):
            shared = {k: v for k, v in row["training"].items() if k not in COUNTS}
            groups.setdefault(canonical(shared), []).append(_measured(row))
    return [_trained(lines) for lines in groups.values()]


def _trained(lines: list[Line]) -> Trained:
    lines.sort(key=lambda line: line["training"]["repeat"])
    known = {arm for line in lines for arm in (*line["distances"], *line["log"])}

    def named(part: str) -> list[str]:
        found = dict.fromkeys(a for line in lines for a in line["training"][part])
        return [arm for arm in found if arm in known]

    return Trained(lines, named("candidates"), named("yardsticks"))


def _measured(line: Line) -> Line:
    """The line with 1 - cosine beside the cosine, which no logarithmic axis can show.

    Of equal weights it is 0, whatever the rounding of their cosine is.
    """
    distances = {
        arm: [{**at, "1 - cosine": 1 - at["cosine"] if at["rel_l2"] else 0.0} for at in log]
        for arm, log in line["distances"].items()
    }
    return {**line, "distances": distances}
