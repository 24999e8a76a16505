"""`Study` and `Claim`: what is measured, and what must come out for a statement to hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from roundoff.bench.plan import Plan
from roundoff.errors import UnknownNameError
from roundoff.records import Verdict
from roundoff.records.verdict import Outcome

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Claim", "Finding", "Study"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a claim's predicate found: the outcome, the measured sentence, and its evidence."""

    outcome: Outcome
    measured: str
    condition: str = ""
    evidence: pd.DataFrame | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement of a paper.

    `text` is the statement in our words, `claimed` what the paper gives for it, `judge` a
    function from the run's rows (one line a cell, columns named as in `Run.frame`) to a finding.
    """

    id: str
    text: str
    claimed: str
    judge: Callable[[pd.DataFrame], Finding]

    def verdict(self, rows: pd.DataFrame) -> Verdict:
        """The outcome of this claim over `rows`; rows that it needs and are not there: cannot tell."""
        try:
            found = self.judge(rows)
        except (KeyError, ValueError, IndexError) as error:
            found = Finding("cannot tell", f"rows are missing: {type(error).__name__} {error}")
        evidence = [] if found.evidence is None else found.evidence.to_dict("records")
        return Verdict(
            self.id, self.text, self.claimed, found.outcome, found.measured, found.condition,
            [{str(k): v for k, v in row.items()} for row in evidence],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Study:
    """A paper: presets of measurements, and the claims that they decide."""

    name: str
    source: str
    doc: str
    presets: Mapping[str, Callable[[], Plan]]
    claims: tuple[Claim, ...]

    def plan(self, preset: str) -> Plan:
        """The plan of a preset."""
        if preset not in self.presets:
            raise UnknownNameError(f"preset of {self.name}", preset, self.presets)
        return self.presets[preset]()

    def judge(self, rows: pd.DataFrame) -> list[Verdict]:
        """The verdict of every claim."""
        good = rows[rows["status"] == "ok"]
        return [claim.verdict(good) for claim in self.claims]
