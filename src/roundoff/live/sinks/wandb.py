"""Readings in a run of Weights & Biases; offline unless it is said otherwise."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Literal

from roundoff.records import Finding, Reading
from roundoff.registry import require
from roundoff.state.random_states import undrawn
from roundoff.store.disk import check_writable

__all__ = ["WandB"]


class WandB:
    """A run of wandb, with keys `roundoff/of/name[head]/measure` over `roundoff/step`.

    `run` is one of yours, which is logged to and left open. Without it, one is made in `project` at
    the first reading, in `folder`. "offline" keeps it in files (`wandb sync` sends them) and opens
    no connection: wandb's reports of its own errors are off too, unless WANDB_ERROR_REPORTING says
    otherwise. Findings are a list in the run's summary.

    `MissingLibraryError` without wandb (the extra `live`), `RunError` for a folder that cannot be
    written.
    """

    def __init__(
        self,
        run: Any = None,
        *,
        project: str = "roundoff",
        folder: str | Path = ".",
        mode: Literal["offline", "online"] = "offline",
    ) -> None:
        self._wandb = require("wandb", extra="live", purpose="the sink WandB")
        self._given, self._run = run, None
        self._how = {"project": project, "dir": str(folder), "mode": mode}
        self._findings: list[str] = []
        if run is None:
            check_writable(Path(folder), folder=True)

    _run: Any

    def write(self, step: int, readings: Sequence[Reading], findings: Sequence[Finding]) -> None:
        """Log all of a step at once."""
        if self._run is None:
            self._run = self._opened()
        values = {
            f"roundoff/{r.of}/{r.place}/{measure}": value
            for r in readings
            for measure, value in r.values.items()
        }
        self._run.log({"roundoff/step": step, **values})
        if findings:
            self._findings += map(str, findings)
            self._run.summary["roundoff/findings"] = [*self._findings]

    def close(self) -> None:
        """Finish the run, unless it was given."""
        run, self._run = self._run, None
        if run is not None and self._given is None:
            run.finish()

    def _opened(self) -> Any:
        run = self._given
        if run is None:
            Path(self._how["dir"]).mkdir(parents=True, exist_ok=True)
            quiet = self._wandb.Settings(console="off", silent=True)
            with undrawn(), _unreported(offline=self._how["mode"] == "offline"):
                run = self._wandb.init(**self._how, settings=quiet)
        run.define_metric("roundoff/*", step_metric="roundoff/step")
        return run


@contextlib.contextmanager
def _unreported(*, offline: bool) -> Generator[None]:
    """Offline, wandb would still look for a server that takes reports of its errors."""
    name = "WANDB_ERROR_REPORTING"
    if not offline or name in os.environ:
        yield
        return
    os.environ[name] = "false"
    try:
        yield
    finally:
        del os.environ[name]
