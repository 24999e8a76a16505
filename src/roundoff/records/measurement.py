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

_PARTS = ("outputs", "floor", "evidence", "condition", "probes", "timing", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One line of a run.

    `outputs`, `floor` and `evidence` map an output's name to metrics: of the candidate, of
    golden rounded once to the output's format, and the match of candidate and baseline
    (match, null, lift). `ran` names the events that prove which kernels did the work.
    A failed or skipped cell has an `error`, which says why, and none of these.
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
        """The measurement as plain JSON data; empty parts are left out.

        "ok" and "skipped" (a kernel does not take this problem) are final, since what decides
        them is in the cell's identity; "failed" is tried again.
        """
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "id": self.id,
            "status": self.status,
            "environment": self.environment,
            "elapsed": self.elapsed,
            "cell": self.cell.to_record(),
        }
        if self.ran:
            record["ran"] = list(self.ran)
        return record | {name: value for name in _PARTS if (value := getattr(self, name))}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Measurement:
        """The measurement that `to_record` wrote."""
        parts = {name: record[name] for name in _PARTS if name in record}
        return cls(
            id=record["id"],
            cell=Cell.from_record(record["cell"]),
            environment=record["environment"],
            status=record["status"],
            ran=tuple(record.get("ran", ())),
            elapsed=record["elapsed"],
            **parts,
        )
