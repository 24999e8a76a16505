"""Readings in a run directory: one line a sampled step, of which `Run.sql` has a table `live`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from roundoff.records import SCHEMA, Reading
from roundoff.store import Run

__all__ = ["RunDirectory"]


class RunDirectory:
    """A run at `path`; one that exists is added to, so that a resumed training goes on in it.

    A path that is something else is a `RunError`.
    """

    def __init__(self, path: str | Path) -> None:
        run = Run.create_or_open(path, manifest={"command": "monitor"})
        self._open = contextlib.ExitStack()
        self._writer = self._open.enter_context(run.writer())

    def write(self, step: int, readings: Sequence[Reading]) -> None:
        """Add one line; what a step was said to be before stays."""
        rows = [reading.to_record() for reading in readings]
        self._writer.append(
            {"id": f"live-{step}", "status": "ok", "schema": SCHEMA, "step": step, "live": rows}
        )

    def close(self) -> None:
        """End the writer."""
        self._open.close()
