"""What a run holds of training, laid out: one section an experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from roundoff.report.curves import distance_figures, unit_figures
from roundoff.report.drawings import Made, made_of
from roundoff.report.figure import Figure
from roundoff.report.layers import layer_figures
from roundoff.report.losses import loss_figures
from roundoff.report.tables import Table
from roundoff.report.trained import BASELINE, Trained, trained_of
from roundoff.report.training_tables import (
    direct_table,
    distance_table,
    tensor_table,
    time_table,
    unit_table,
)
from roundoff.training.verdict import broken

__all__ = ["Section", "training_sections"]

UNDRAWN = "No distance can be drawn: all are exactly 0, NaN or infinite; the table has them."
FIGURES = (distance_figures, unit_figures, loss_figures, layer_figures)


@dataclass(frozen=True, slots=True)
class Section:
    """One experiment on the page."""

    anchor: str
    title: str
    facts: Sequence[tuple[str, str]]
    figures: Sequence[Figure]
    distances: Table
    units: Table
    direct: Table
    tensors: Table
    made: Made
    made_after: int
    notes: Sequence[str]
    times: Table = Table([], [])  # noqa: RUF009 - frozen


def training_sections(rows: Sequence[Mapping[str, Any]]) -> list[Section]:
    """The sections of all experiments among the lines of a run; none where nothing was trained."""
    found = trained_of(rows)
    sections = [_section(t, f"training-{i}", found) for i, t in enumerate(found, start=1)]
    return [
        replace(section, times=time_table(_times(t, rows)))
        for section, t in zip(sections, found, strict=True)
    ]


def _section(trained: Trained, anchor: str, beside: Sequence[Trained]) -> Section:
    made = (figure for make in FIGURES for figure in make(trained, anchor))
    sample, after = _sample(trained, beside)
    figures = [f for f in made if f.views]
    is_drawn = any(f.id == f"{anchor}-distance" for f in figures)
    return Section(
        anchor, _title(trained), _facts(trained), figures,
        distance_table(trained), unit_table(trained), direct_table(trained),
        tensor_table(trained), made_of(sample), after,
        _notes(trained, is_drawn=is_drawn),
    )  # fmt: skip


def _sample(trained: Trained, beside: Sequence[Trained]) -> tuple[object, int]:
    """What the baseline makes, and after how many steps: shown once, of the longest run.

    A long run's sample stands with the repeats that it belongs to.
    """
    kind = [t for t in beside if _kind(t) == _kind(trained)]
    long = [t for t in kind if _is_long(t)]
    if _is_long(trained) and len(long) < len(kind):
        return None, 0
    told = max([trained, *long], key=lambda t: int(t.experiment["steps"]))
    sample = next((s for line in told.lines if (s := line.get("sample"))), None)
    return sample, int(told.experiment["steps"])


def _times(trained: Trained, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What was timed of this experiment's candidates."""
    return [
        row["step_times"] for row in rows
        if row.get("status") == "ok" and row.get("step_times")
        and _kind_of(row["training"]) == _kind(trained) and not _is_long(trained)
    ]  # fmt: skip


def _is_long(trained: Trained) -> bool:
    return trained.experiment.get("what") == "long"


def _kind(trained: Trained) -> list[Any]:
    return _kind_of(trained.experiment)


def _kind_of(experiment: Mapping[str, Any]) -> list[Any]:
    return [experiment.get(k) for k in ("workload", "baseline", "format", "seed", "device")]


def _notes(trained: Trained, *, is_drawn: bool) -> list[str]:
    """What a reader must know before the figures: what was not finite, and what is not drawn."""
    found = [b if b.arm == BASELINE else replace(b, arm=trained.names[b.arm])
             for b in broken(trained.lines)]  # fmt: skip
    return [*map(str, found), *[UNDRAWN] * bool(trained.arms and not is_drawn)]


def _title(trained: Trained) -> str:
    found = trained.experiment
    baseline = f", {found['baseline']}" if found.get("baseline") else ""
    return f"Training of {found['workload']}{baseline}, {found['format']}, {found['steps']} steps"


def _facts(trained: Trained) -> list[tuple[str, str]]:
    found = trained.experiment
    planned = max(int(line["training"]["repeats"]) for line in trained.lines)
    facts = {
        "workload": found["workload"],
        "parameters": f"{int(trained.lines[-1].get('parameters', 0)):,}",
        "baseline": found.get("baseline") or "the model's own attention",
        "format": found["format"],
        "steps": found["steps"],
        "repeats": trained.repeats if trained.repeats >= planned
        else f"{trained.repeats} of {planned}",
        "candidates": ", ".join(trained.names[c] for c in trained.candidates),
        "yardsticks": ", ".join(trained.names[y] for y in trained.yardsticks),
    }  # fmt: skip
    return [(name, str(value)) for name, value in facts.items() if value]
