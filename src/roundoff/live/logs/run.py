"""Runs of roundoff: losses of trained arms, and readings of a monitor."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from roundoff.live.logs.lines import named
from roundoff.live.logs.series import Collected, Series
from roundoff.store import Run

__all__ = ["read"]


def read(path: Path) -> list[Series]:
    """The series of a run: `repeat 0 baseline/loss`, `gradients/fc.weight/norm` and the like."""
    found, live = Collected(), list[dict[str, Any]]()
    for row in Run.open(path).rows():
        about = cast("dict[str, Any]", row.get("training") or {})
        which = " ".join(str(about[k]) for k in ("what", "repeat") if k in about)
        for arm, steps in cast("dict[str, list[dict[str, Any]]]", row.get("log") or {}).items():
            for at, values in enumerate(steps):
                for name, value in values.items():
                    if name != "step":
                        found.put(f"{which} {arm}/{name}", int(values.get("step", at)), value)
        live += cast("list[dict[str, Any]]", row.get("live") or [])
    for reading in sorted(live, key=lambda reading: reading["step"]):
        found.add(named(reading))
    return found.series()
