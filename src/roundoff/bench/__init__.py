"""Sweeps: `plan` says which cells, `identity` which cell is which, `measure` does one,
`sweep` runs a plan into a run directory. Everything is imported when it is first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from roundoff.registry import lazily

if TYPE_CHECKING:
    from roundoff.bench.plan import Plan, Sweep, make_plan, read_plan
    from roundoff.bench.sweep import Progress, identified, run_cells

__all__ = ["Plan", "Progress", "Sweep", "identified", "make_plan", "read_plan", "run_cells"]

_PLACES = {
    "Plan": "plan",
    "Progress": "sweep",
    "Sweep": "plan",
    "identified": "sweep",
    "make_plan": "plan",
    "read_plan": "plan",
    "run_cells": "sweep",
}


__getattr__, __dir__ = lazily(__name__, _PLACES, __all__)
