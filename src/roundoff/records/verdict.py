"""`Verdict`: what came of a claim or a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["Verdict"]

Outcome = Literal["holds", "holds only if", "does not hold", "cannot tell"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of one claim, with what was claimed, what was measured and under which condition.

    `measured` is a sentence with intervals; `condition` says what it takes where a claim
    holds only in part; `evidence` are the rows behind it, for tables and figures.
    """

    claim: str
    text: str
    claimed: str
    outcome: Outcome
    measured: str
    condition: str = ""
    evidence: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def to_record(self) -> dict[str, Any]:
        """The verdict as plain JSON data."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Verdict:
        """The verdict that `to_record` wrote."""
        return cls(**record)
