"""A comparison of checkpoints as a map of layers and metrics: its JSON document in, a page out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from roundoff.report.charts import ROW, altair
from roundoff.report.figure import Spec
from roundoff.report.files import inline, png, rendered, svg, write_whole
from roundoff.report.look import DARK, LIGHT, Look
from roundoff.store.json import dumps

__all__ = ["heat_map", "write_diff"]

Document = Mapping[str, Any]
CELL = 74
LEAST_SPAN = math.log(10)
"""The colours of a column span no less than a factor of ten."""
MOST_LAYERS = 200
"""Layers on a map; beyond it, those of the largest rel_l2."""
METRICS = {
    "rel_l2": "|B - A| / |A|",
    "rel_l1": "the same in sums of sizes",
    "1 - cosine": "blind to size",
    "steps": "mean distance in numbers of the dtype",
    "flips": "share of opposite signs",
    "W1 / |A|": "pooled W1 over the mean size of A",
    "W1 a tensor": "mean W1 of the tensors over the mean size of A",
}
COLUMNS = (
    "layer", "tensors", "elements", "max_diff", *METRICS,
)  # fmt: skip


def write_diff(document: Document, folder: Path) -> list[Path]:
    """Write diff.html, diff.json and a picture of each comparison; the paths, page first.

    `document` is what `roundoff diff --json` prints. Raises `MissingLibraryError` without
    Altair, vl-convert or Jinja, and `RunError` where the folder cannot be written.
    """
    comparisons: Sequence[Document] = document.get("series") or [document]
    shown: list[dict[str, Any]] = []
    pictures: list[Path] = []
    for at, one in enumerate(comparisons):
        light, dark = (
            svg(heat_map(one, look), look.config(background=look.page)) for look in (LIGHT, DARK)
        )
        stem = "diff" if len(comparisons) == 1 else f"diff-{at + 1}"
        pictures.append(write_whole(folder / f"{stem}.png", png(light)))
        shown.append({
            "light": inline(light), "dark": inline(dark), "caption": _caption(one),
            "facts": _facts(one), "rows": list(_rows(one)), "lists": list(_lists(one)),
        })  # fmt: skip
    page = write_whole(folder / "diff.html", _page(document, shown).encode())
    data = write_whole(folder / "diff.json", (dumps(document) + "\n").encode())
    return [page, data, *pictures]


def heat_map(comparison: Document, look: Look = LIGHT) -> Spec:
    """A line a layer, a column a metric, the colour by the logarithm of the value in its column.

    A cell without a colour holds 0, or no number.
    """
    alt = altair()
    groups = _groups(comparison)
    values = [cell for group in groups for cell in _cells(group)]
    _shade(values)
    down = alt.Y("layer:O", sort=[_name(g) for g in groups], axis=alt.Axis(title=None))
    across = alt.X(
        "metric:O", sort=list(METRICS), axis=alt.Axis(title=None, orient="top", labelAngle=0)
    )
    chart = alt.Chart().encode(x=across, y=down)
    colours = [look.panel, look.ramp[3], look.ramp[4]]
    scale = alt.Scale(domain=[0, 0.6, 1], range=colours, interpolate="rgb")
    ink = alt.condition("datum.shade > 0.75", alt.value("#ffffff"), alt.value(look.ink))
    box = chart.mark_rect().encode(color=alt.Color("shade:Q", scale=scale, legend=None))
    text = chart.mark_text(fontSize=10).encode(text="text:N", color=ink)
    drawn = alt.layer(box, text, data=alt.Data(values=values))
    size = {"width": CELL * len(METRICS), "height": ROW * max(1, len(groups))}
    spec: Spec = drawn.properties(**size).to_dict(validate=False)
    spec.pop("config", None)
    return spec


def _groups(comparison: Document) -> list[Document]:
    groups: list[Document] = list(comparison["groups"])
    if len(groups) > MOST_LAYERS:
        worst = sorted(groups, key=lambda g: -_size(g["rel_l2"]))[:MOST_LAYERS]
        groups = [g for g in groups if any(g is w for w in worst)]
    return [*groups, comparison["overall"], *comparison["optimizer"]]


def _size(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _name(group: Document) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in group["name"])


def _numbers(group: Document) -> dict[str, float]:
    """The metrics of the map for one layer."""
    scale, count = group["mean_abs_a"], group["elements"]
    pooled = math.nan if group["wasserstein_pooled"] is None else group["wasserstein_pooled"]
    found = (
        group["rel_l2"], group["rel_l1"], 1 - group["cosine"], group["ulp_mean"],
        group["sign_flips"] / count if count else math.nan,
        _over(pooled, scale), _over(group["wasserstein_per_tensor"], scale),
    )  # fmt: skip
    return dict(zip(METRICS, map(float, found), strict=True))


def _over(value: float, scale: float) -> float:
    return value / scale if scale else math.nan


def _cells(group: Document) -> Iterator[dict[str, Any]]:
    for metric, value in _numbers(group).items():
        text = f"{value:.2g}" if math.isfinite(value) else str(value)
        yield {"layer": _name(group), "metric": metric, "value": value, "text": text}


def _shade(cells: Sequence[dict[str, Any]]) -> None:
    """Give each cell its place between the smallest and the largest of its column, from 0 to 1."""
    for metric in METRICS:
        column = [cell for cell in cells if cell["metric"] == metric]
        logs = [math.log(c["value"]) for c in column if 0 < c["value"] < math.inf]
        low, high = (min(logs), max(logs)) if logs else (0.0, 0.0)
        for cell in column:
            value = cell.pop("value")
            if not 0 < value < math.inf:
                cell["shade"] = None if value == 0 else 1.0
            else:
                cell["shade"] = 0.1 + 0.9 * (math.log(value) - low) / max(high - low, LEAST_SPAN)


def _rows(comparison: Document) -> Iterator[list[str]]:
    for group in [*comparison["groups"], comparison["overall"], *comparison["optimizer"]]:
        numbers = [f"{float(v):.3g}" for v in (group["max_diff"], *_numbers(group).values())]
        yield [_name(group), str(group["tensors"]), str(group["elements"]), *numbers]


def _caption(comparison: Document) -> str:
    overall = comparison["overall"]
    return (
        f"Layers by metric; the colour goes by the logarithm within a column. Overall rel_l2 "
        f"{float(overall['rel_l2']):.2e}, cosine {float(overall['cosine']):.6f}."
    )


def _facts(comparison: Document) -> list[tuple[str, str]]:
    sides = [(s, comparison[s.lower()]) for s in ("A", "B", "base") if comparison[s.lower()]]
    facts = [(s, f"{c['path']} ({c['format']}, {c['tensors']} tensors)") for s, c in sides]
    overall = comparison["overall"]
    pooled = overall["wasserstein_pooled"]
    facts += [
        ("W1, pooled", "not taken" if pooled is None else f"{float(pooled):.4g}"),
        ("W1, mean over tensors by size", f"{float(overall['wasserstein_per_tensor']):.4g}"),
    ]
    if overall["update"] is not None:
        facts.append(("cosine of the updates", f"{float(overall['update']['cosine']):.6f}"))
    return facts + ([("cast", comparison["cast"])] if comparison["cast"] else [])


def _lists(comparison: Document) -> Iterator[tuple[str, str]]:
    """What is not compared, in words."""
    words = {"only_a": "missing in B", "only_b": "missing in A"}
    for key, word in words.items():
        if comparison[key]:
            yield word, ", ".join(comparison[key])
    for name, (a, b) in comparison["reshaped"].items():
        yield "of another shape", f"{name}: {a} to {b}"
    for side in ("a", "b"):
        if left := comparison[side]["left_out"]:
            yield f"left out of {side.upper()}", ", ".join(f"{n} ({w})" for n, w in left.items())
    for note in comparison["notes"]:
        yield "note", note


def _page(document: Document, comparisons: Sequence[Document]) -> str:
    return rendered(
        "diff.html.j2",
        command=document["command"], comparisons=comparisons, columns=COLUMNS, metrics=METRICS,
    )  # fmt: skip
