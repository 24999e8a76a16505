"""`Measurement`: what one cell gave, bound to the environment it was measured in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from roundoff.records.cell import Cell

__all__ = ["SCHEMA", "Measurement"]

SCHEMA = 1
"""Version of a stored line; readers refuse newer ones."""

Metrics = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One line of a run.

    `outputs`, `floor` and `evidence` map an output's name to metrics: of the candidate, of
    golden rounded once to the output's format, and the match of candidate and baseline
    (match, null, lift). `ran` names the events that prove which kernels did the work.
    A failed cell has an `error` and none of these.
    """

    id: str
    cell: Cell
    environment: str
    status: Literal["ok", "failed", "skipped"]
    outputs: Mapping[str, Metrics] = field(default_factory=dict[str, Metrics])
    floor: Mapping[str, Metrics] = field(default_factory=dict[str, Metrics])
    evidence: Mapping[str, Metrics] = field(default_factory=dict[str, Metrics])
    condition: Metrics = field(default_factory=dict[str, Any])
    probes: Metrics = field(default_factory=dict[str, Any])
    timing: Metrics = field(default_factory=dict[str, Any])
    ran: tuple[str, ...] = ()
    elapsed: float = 0.0
    error: str | None = None

    def to_record(self) -> dict[str, Any]:
        """The measurement as plain JSON data; empty parts are left out."""
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "id": self.id,
            "status": self.status,
            "environment": self.environment,
            "elapsed": self.elapsed,
            "cell": self.cell.to_record(),
        }
        parts = ("outputs", "floor", "evidence", "condition", "probes", "timing", "ran", "error")
        return record | {name: value for name in parts if (value := getattr(self, name))}
