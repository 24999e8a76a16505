"""What a plan would do, for `--dry-run`: cells, what varies between them, and how long it takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from roundoff.bench.plan import Plan, seconds
from roundoff.cli.terminal import print_json, print_table
from roundoff.records import Cell

__all__ = ["duration", "show_plan"]


def show_plan(plan: Plan, *, json: bool) -> None:
    """The axes, the cells of each candidate and format, and the cost; as JSON also every cell."""
    cells = plan.cells()
    counts = Counter((str(cell.candidate), cell.format) for cell in cells)
    axes, cost, time = _axes(cells), plan.cost(), seconds(plan)
    if json:
        print_json("plan", {
            "cells": len(cells), "operations": cost, "seconds": time, "axes": axes,
            "candidates": [{"candidate": c, "format": f, "cells": n}
                           for (c, f), n in counts.items()],
            "planned": [cell.to_record() for cell in cells],
        })  # fmt: skip
        return
    if axes:
        spelled = ((name, ", ".join(map(_spelled, values))) for name, values in axes.items())
        print_table("what varies", ["axis!", "values"], spelled)
    print_table(
        f"{len(cells)} cells, {cost:.2g} operations, about {duration(time)} on one core",
        ["candidate", "format", "cells>"],
        [(c, f, n) for (c, f), n in counts.items()],
    )


def _axes(cells: Sequence[Cell]) -> dict[str, list[Any]]:
    """The values of what is not the same in all cells."""
    values: dict[str, dict[Any, None]] = {}
    for cell in cells:
        fixed = {"operator": cell.operator, "baseline": str(cell.baseline), "format": cell.format}
        for name, value in (fixed | dict(cell.parameters) | {"seed": cell.seed}).items():
            values.setdefault(name, {})[value] = None
    return {name: list(found) for name, found in values.items() if len(found) > 1}


def _spelled(value: object) -> str:
    return "default" if value is None else str(value)


def duration(seconds: float) -> str:
    """Seconds in words, as roughly as they are known.

    >>> duration(0.2), duration(42.0), duration(600.0), duration(20_000.0)
    ('1 second', '42 seconds', '10 minutes', '5.6 hours')
    """
    if seconds < 1.5:
        return "1 second"
    if seconds < 100:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"
