"""Readings in a run directory: one line a sampled step; `Run.sql` has them as a table `live`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from roundoff.records import SCHEMA, Finding, Reading
from roundoff.store import Run, Writer

__all__ = ["RunDirectory"]


class RunDirectory:
    """A run at `path`; one that exists is added to, so that a resumed training goes on in it.

    What stands out is a table `findings`. A path that is something else is a `RunError`.
    """

    def __init__(self, path: str | Path) -> None:
        self._run = Run.create_or_open(path, manifest={"command": "monitor"})
        self._open = contextlib.ExitStack()
        self._writer: Writer | None = None

    def write(self, step: int, readings: Sequence[Reading], findings: Sequence[Finding]) -> None:
        """Add one line; what a step was said to be before stays."""
        if self._writer is None:
            self._writer = self._open.enter_context(self._run.writer())
        found = {"findings": [f.to_record() for f in findings]} if findings else {}
        rows = [reading.to_record() for reading in readings]
        line = {"id": f"live-{step}", "status": "ok", "schema": SCHEMA, "step": step}
        self._writer.append({**line, "live": rows, **found})

    def close(self) -> None:
        """End the writer."""
        self._open.close()
        self._writer = None
