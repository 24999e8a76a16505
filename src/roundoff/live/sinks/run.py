"""Readings in a run directory: one line a sampled step; `Run.sql` has them as a table `live`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

from roundoff.records import SCHEMA, Finding, Reading
from roundoff.store import Run, Writer
from roundoff.store.disk import moment

__all__ = ["RunDirectory"]

_LOG = logging.getLogger("roundoff")


class RunDirectory:
    """A run at `path`, of one training; one that exists is added to, so that a resumed one goes on.

    Each row says when its training was `begun`, that is, first written. From its first step on it
    takes the place of those before; where they had such steps, that is one warning. What stands out
    is a table `findings`. A path that is something else is a `RunError`.
    """

    def __init__(self, path: str | Path) -> None:
        self._path, self._begun = Path(path), ""
        self._open = contextlib.ExitStack()
        self._writer: Writer | None = None
        Run.check(path)

    def write(self, step: int, readings: Sequence[Reading], findings: Sequence[Finding]) -> None:
        """Add one line."""
        if self._writer is None:
            self._writer = self._begin(step)
        begun = {"begun": self._begun}
        found = {"findings": [{**begun, **f.to_record()} for f in findings]} if findings else {}
        rows = [{**begun, **reading.to_record()} for reading in readings]
        line = {"id": f"live-{self._begun}-{step}", "status": "ok", "schema": SCHEMA, "step": step}
        self._writer.append({**line, **begun, "live": rows, **found})

    def close(self) -> None:
        """End the writer."""
        self._open.close()
        self._writer = None

    def _begin(self, step: int) -> Writer:
        run = Run.create_or_open(self._path, manifest={"command": "monitor"})
        if again := [r["step"] for r in run.rows() if "begun" in r and r["step"] >= step]:
            _LOG.warning(
                "monitor: %s has a training with steps up to %d already; from step %d on this one "
                "takes its place there, and its lines stay in the files; another folder would keep "
                "them apart", self._path, max(again), step,
            )  # fmt: skip
        self._begun = moment()
        return self._open.enter_context(run.writer())
