"""The page: what a run holds, laid out, in one file that needs nothing else."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roundoff.registry import require
from roundoff.report import tables
from roundoff.report.bias import bias_figures
from roundoff.report.claims import Shown, read_claims
from roundoff.report.figure import Figure, Names
from roundoff.report.files import bundle, embedded_json, png, svg, write_whole
from roundoff.report.formats import format_figures
from roundoff.report.lines import line_figures
from roundoff.report.live import live_figures
from roundoff.report.look import DARK, LIGHT
from roundoff.report.ratios import ratio_figures
from roundoff.report.rows import Sample, samples_of
from roundoff.store import Run

if TYPE_CHECKING:
    from roundoff.report.training import Section

__all__ = ["write_report"]

MOST_BYTES = 1_950_000
"""Of the whole page, 0.9 MB of which are the scripts that draw."""
MOST_FIGURES = 24


@dataclass(frozen=True, slots=True)
class Content:
    """All that the page shows, ready to be laid out."""

    title: str
    facts: Sequence[tuple[str, str]]
    command: str
    claims: Sequence[Shown]
    tally: Sequence[tuple[str, str, int]]
    trainings: Sequence[Section]
    figures: Sequence[Figure]
    tables: Mapping[str, tables.Table]
    problems: Sequence[str]
    dropped: int

    def drawn(self) -> list[Figure]:
        """Every figure on the page: of training, of the sweep, and of the claims."""
        trained = [figure for section in self.trainings for figure in section.figures]
        return [*trained, *self.figures, *(c.figure for c in self.claims if c.figure)]


def write_report(run: Run, *, folder: Path | None = None) -> list[Path]:
    """Write `report.html` and a PNG and an SVG of each figure; the paths, the page first.

    They go into the run's folder, or into `folder`. The page works offline and runs of any
    operator have one: what it shows follows from what varies in the cells. Files are
    replaced whole. Missing libraries are a `MissingLibraryError` (extra `report`), a folder
    that cannot be written a `RunError`.
    """
    target = run.path if folder is None else folder
    content = _content(run)
    scripts = bundle() if content.drawn() else ""
    content = _fitted(
        content, MOST_BYTES - len(scripts) - len(_render(content, data="", bundle=""))
    )
    shown = {
        "figures": [_data(f) for f in content.drawn()],
        "themes": {"light": LIGHT.config(), "dark": DARK.config()},
    }
    html = _render(content, data=embedded_json(shown), bundle=scripts)
    written = [write_whole(target / "report.html", html.encode())]
    for figure in content.drawn():
        picture = svg(figure.spec(figure.views[0]), LIGHT.config(background=LIGHT.page))
        for suffix, data in (("png", png(picture)), ("svg", picture.encode())):
            path = target / "figures" / f"{figure.id}.{suffix}"
            written.append(write_whole(path, data))
    return written


def _content(run: Run) -> Content:
    rows = run.rows()
    samples = samples_of(rows)
    names = Names(s.candidate for s in samples)
    trainings = _trainings(rows)
    beside, claims = read_claims(run)
    figures: list[Figure] = []
    if samples:
        for make in (line_figures, format_figures, ratio_figures, bias_figures):
            figures += make(samples, names)
    figures += live_figures(rows)
    figures = _named([f for f in figures if f.views])
    return Content(
        title=_title(run, samples, trainings),
        facts=_facts(run, beside, rows, samples),
        command=str(beside.get("command") or run.manifest.get("command") or ""),
        claims=claims,
        tally=[(*k, n) for k, n in Counter((c.outcome, c.style) for c in claims).items()],
        trainings=trainings,
        figures=figures,
        tables=_tables(run, rows, samples, names),
        problems=run.problems,
        dropped=0,
    )


def _trainings(rows: Sequence[Mapping[str, Any]]) -> list[Section]:
    if not any("training" in row for row in rows):
        return []
    from roundoff.report.training import training_sections  # noqa: PLC0415 - imports torch

    return training_sections(rows)


def _title(run: Run, samples: Sequence[Sample], trainings: Sequence[Section]) -> str:
    if study := run.manifest.get("study"):
        return f"Study {study}"
    operators = list(dict.fromkeys(str(s.place.get("operator", "")) for s in samples))
    parts = [f"Bench of {', '.join(operators)}"] * bool(operators)
    parts += [trainings[0].title if len(trainings) == 1 else f"{len(trainings)} trainings"] * bool(
        trainings
    )
    if not parts and run.manifest.get("command") == "monitor":
        parts.append("A training, watched")
    return "; ".join(parts) or "A run without measurements"


def _facts(
    run: Run,
    beside: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    samples: Sequence[Sample],
) -> list[tuple[str, str]]:
    repeats = [r for r in rows if "training" in r]
    cells = [r for r in rows if "training" not in r and "live" not in r]
    sampled = [r for r in rows if "live" in r]
    found = {
        "source": beside.get("source"),
        "preset": run.manifest.get("preset"),
        "trained repeats": _states(repeats) if repeats else None,
        "cells": None if (repeats or sampled) and not cells else _states(cells),
        "sampled steps": sum(len({x["step"] for x in r["live"]}) for r in sampled) or None,
        "candidates": len({s.candidate for s in samples}) or None,
        "seeds": len({s.seed for s in samples}) or None,
        "begun": run.manifest.get("created"),
    }
    return [(name, str(value)) for name, value in found.items() if value not in (None, "")]


def _states(rows: Sequence[Mapping[str, Any]]) -> str:
    states = Counter(tables.status_of(r) for r in rows)
    told = ", ".join(f"{n} {state}" for state, n in states.items()) or "none"
    return f"{len(rows)} ({told})"


def _tables(
    run: Run, rows: Sequence[Mapping[str, Any]], samples: Sequence[Sample], names: Names
) -> dict[str, tables.Table]:
    counts = Counter(str(row.get("environment")) for row in rows)
    return {
        "results": tables.result_table(samples, names),
        "match": tables.match_table(samples),
        "timing": tables.timing_table(rows),
        "failures": tables.failure_table(rows),
        "environments": tables.environment_table(run.documents("environments"), counts),
        "metrics": tables.metric_table(samples),
    }


def _named(figures: Sequence[Figure]) -> list[Figure]:
    """The figures with ids that can be file names, each once."""
    seen: Counter[str] = Counter()
    named: list[Figure] = []
    for figure in figures[:MOST_FIGURES]:
        slug = re.sub(r"[^a-z0-9]+", "-", figure.id.lower()).strip("-")[:60] or "figure"
        seen[slug] += 1
        named.append(replace(figure, id=slug if seen[slug] == 1 else f"{slug}-{seen[slug]}"))
    return named


def _fitted(content: Content, room: int) -> Content:
    """As much as the page has room for: first views go, then whole figures."""
    held = content.drawn()
    sizes = [len(embedded_json(_data(f))) for f in held]
    dropped = 0
    while sum(sizes) > room and held:
        several = [i for i, f in enumerate(held) if len(f.views) > 1]
        at = max(several or range(len(held)), key=lambda i: sizes[i])
        dropped += 1
        if several:
            held[at] = replace(held[at], views=held[at].views[:-1])
            sizes[at] = len(embedded_json(_data(held[at])))
        else:
            del held[at], sizes[at]
    kept = {f.id: f for f in held}
    claims = [
        replace(c, figure=kept.get(c.figure.id) if c.figure else None) for c in content.claims
    ]
    trainings = [
        replace(s, figures=[kept[f.id] for f in s.figures if f.id in kept])
        for s in content.trainings
    ]
    figures = [kept[f.id] for f in content.figures if f.id in kept]
    return replace(content, figures=figures, claims=claims, trainings=trainings, dropped=dropped)


def _data(figure: Figure) -> dict[str, Any]:
    """A figure as the page's script reads it; a column of words has one entry a row."""
    return {
        "id": figure.id,
        "rows": list(figure.rows),
        "shown": dict(figure.shown),
        "views": [
            {"label": v.label, "spec": v.spec, "columns": list(v.columns), "values": v.values,
             "caption": v.caption}
            for v in figure.views
        ],
    }  # fmt: skip


def _render(content: Content, *, data: str, bundle: str) -> str:
    """The page as text; everything from the run is escaped, the page's own parts are not."""
    jinja2 = require("jinja2", extra="report", purpose="a report")
    room = files("roundoff.report")
    own = {n: room.joinpath(f"page.{n}").read_text(encoding="utf-8") for n in ("css", "js")}
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(room.joinpath("page.html.j2").read_text(encoding="utf-8"))
    safe = environment.filters["safe"]
    parts = {k: safe(v) for k, v in {**own, "data": data, "bundle": bundle}.items()}
    return template.render(content=content, light=LIGHT, dark=DARK, **parts)
