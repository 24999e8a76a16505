"""Where readings go: one file each, whose library is imported when the sink is made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from roundoff.records import Reading

__all__ = ["Sink", "sink_at"]


@runtime_checkable
class Sink(Protocol):
    """Takes the readings of one sampled step after the other."""

    def write(self, step: int, readings: Sequence[Reading]) -> None:
        """Take the readings of `step`, which are safe when this returns."""
        ...

    def close(self) -> None:
        """Take no more; twice does no harm."""
        ...


def sink_at(path: str | Path) -> Sink:
    """The sink of a path: a JSONL file where it ends so, else a run directory."""
    if str(path).endswith(".jsonl"):
        from roundoff.live.sinks.jsonl import JsonLines  # noqa: PLC0415

        return JsonLines(path)
    from roundoff.live.sinks.run import RunDirectory  # noqa: PLC0415

    return RunDirectory(path)
