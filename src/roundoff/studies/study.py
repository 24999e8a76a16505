"""`Study` and `Claim`: what is measured, and what must come out for a statement to hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from roundoff.bench.plan import Plan
from roundoff.errors import UnknownNameError, UsageError
from roundoff.live.trained import WatchedTraining
from roundoff.records import Verdict
from roundoff.records.verdict import Outcome
from roundoff.registry import require
from roundoff.training.experiment import Experiment

__all__ = ["Answer", "Claim", "Files", "Frame", "Study", "frame", "joined"]

Frame: TypeAlias = Any
"""A pandas DataFrame (or one of its rows): pandas' own types are partial and would hide errors."""


def frame(lines: Sequence[Mapping[str, object]]) -> Frame:
    """A table of `lines`."""
    return require("pandas", extra="analysis", purpose="judging claims").DataFrame(lines)


def joined(*tables: Frame) -> Frame:
    """The lines of all tables, one below the other."""
    pandas = require("pandas", extra="analysis", purpose="judging claims")
    return pandas.concat(tables, ignore_index=True)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a claim's predicate found: the outcome, the measured sentence, and its evidence."""

    outcome: Outcome
    measured: str
    condition: str = ""
    evidence: Frame | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement of a paper.

    `text` is the statement in our words, `claimed` what the paper gives for it, `judge` a
    function from the run's rows (one line a cell, columns named as in `Run.frame`) to a finding.
    """

    id: str
    text: str
    claimed: str
    judge: Callable[[Any], Answer]

    def verdict(self, rows: Frame | Sequence[Mapping[str, Any]]) -> Verdict:
        """The outcome of this claim over `rows`; `cannot tell` where rows are missing."""
        try:
            found = self.judge(rows)
        except (KeyError, ValueError, IndexError, StopIteration, UsageError) as error:
            found = Answer("cannot tell", f"rows are missing: {error}")
        evidence: list[dict[object, Any]] = []
        if found.evidence is not None:
            evidence = found.evidence.to_dict("records")
        return Verdict(
            self.id, self.text, self.claimed, found.outcome, found.measured, found.condition,
            [{str(k): v for k, v in row.items()} for row in evidence],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Files:
    """Files of inputs that a study makes before it measures, and the claims that need them.

    `make(preset, folder, tell)` leaves them in the folder and gives their paths; what is there
    already is kept. `tell(done, total)` is called as it goes on. `plan` is what is measured on
    them. `doc` says what they are.
    """

    doc: str
    make: Callable[[str, Path, Callable[[int, int], None]], list[Path]]
    plan: Callable[[list[Path]], Plan]
    claims: tuple[Claim, ...]


@dataclass(frozen=True, slots=True)
class Study:
    """A paper: presets of measurements, and the claims that they decide.

    `files` are made in the folder of the run, and measured beside the preset. `experiments` are
    what is trained for a preset, and `training_claims` are judged over its repeats, those
    `on_time` over its timings. `watched` trainings are sampled while they run, and
    `watched_claims` judged over their lines.
    """

    name: str
    source: str
    doc: str
    presets: Mapping[str, Callable[[], Plan]]
    claims: tuple[Claim, ...]
    files: Files | None = None
    experiments: Mapping[str, Callable[[], Experiment]] = field(
        default_factory=dict[str, Callable[[], Experiment]]
    )
    training_claims: tuple[Claim, ...] = ()
    on_time: frozenset[str] = frozenset()
    watched: Mapping[str, Callable[[], tuple[WatchedTraining, ...]]] = field(
        default_factory=dict[str, Callable[[], tuple[WatchedTraining, ...]]]
    )
    watched_claims: tuple[Claim, ...] = ()

    def plan(self, preset: str) -> Plan:
        """The plan of a preset."""
        if preset not in self.presets:
            raise UnknownNameError(f"preset of {self.name}", preset, self.presets)
        return self.presets[preset]()

    def judge(self, rows: Frame, *, files: bool = False) -> list[Verdict]:
        """The verdict of every claim over `rows`, one line for each planned cell.

        With `files` also of those claims that need them.

        What was skipped, since a kernel does not take it, does not count; what failed or was not
        measured has NaN for its metrics, and a claim that needs it cannot tell.
        """
        taken = rows[rows["status"] != "skipped"]
        more = self.files.claims if files and self.files else ()
        return [claim.verdict(taken) for claim in (*self.claims, *more)]

    def judge_training(
        self, repeats: Sequence[Mapping[str, Any]], times: Sequence[Mapping[str, Any]]
    ) -> list[Verdict]:
        """The verdict of every claim on training, over the lines of an experiment."""
        return [
            claim.verdict(times if claim.id in self.on_time else repeats)
            for claim in self.training_claims
        ]
