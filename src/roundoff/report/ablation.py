"""An ablation as a bar chart: its JSON document in, a page and pictures out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from roundoff.report.charts import ROW, altair
from roundoff.report.figure import Spec
from roundoff.report.files import inline, png, rendered, svg, write_whole
from roundoff.report.look import DARK, LIGHT, Look
from roundoff.store.json import dumps

__all__ = ["bars", "write_ablation"]

Document = Mapping[str, Any]
WIDTH = 460
COLUMNS = ("part", "rounds to", "share", "alone", "restored", "left", "gain")


def write_ablation(document: Document, folder: Path) -> list[Path]:
    """Write ablation.html, ablation.json and a picture of each output; the paths, page first.

    `document` is what `roundoff ablate --json` prints. Raises `MissingLibraryError` without
    Altair, vl-convert or Jinja, and `RunError` where the folder cannot be written.
    """
    outputs: Mapping[str, Document] = document["outputs"]
    shown: list[dict[str, Any]] = []
    pictures: list[Path] = []
    for at, (name, output) in enumerate(outputs.items()):
        light, dark = (
            svg(bars(output, look), look.config(background=look.page)) for look in (LIGHT, DARK)
        )
        stem = "ablation" if at == 0 else f"ablation-{name}"
        pictures.append(write_whole(folder / f"{stem}.png", png(light)))
        shown.append({
            "name": name, "light": inline(light), "dark": inline(dark),
            "caption": _caption(output), "rows": list(_rows(output)),
        })  # fmt: skip
    page = write_whole(folder / "ablation.html", _page(document, shown).encode())
    data = write_whole(folder / "ablation.json", (dumps(document) + "\n").encode())
    return [page, data, *pictures]


def bars(output: Document, look: Look = LIGHT) -> Spec:
    """A bar for each part of the squared error, the largest first, with its interval.

    A tick marks what the site would cause alone.
    """
    alt = altair()
    values = [_bar(part) for part in _parts(output)]
    order = [value["part"] for value in values]
    y = alt.Y("part:N", sort=order, title=None)
    x = alt.X("share:Q", title="share of the squared error, %")
    chart = alt.Chart()
    layers = (
        chart.mark_bar(height=ROW * 0.6).encode(x=x, y=y, color=alt.value(look.hues[0])),
        chart.mark_rule(strokeWidth=1.5).encode(
            x=alt.X("low:Q"), x2="high:Q", y=y, color=alt.value(look.hues[1])
        ),
        chart.mark_tick(thickness=2.5, height=ROW * 0.8).encode(
            x=alt.X("alone:Q"), y=y, color=alt.value(look.hues[2])
        ),
    )
    drawn = alt.layer(*layers, data=alt.Data(values=values))
    spec: Spec = drawn.properties(width=WIDTH, height=ROW * len(values)).to_dict(validate=False)
    spec.pop("config", None)
    return spec


def _parts(output: Document) -> list[dict[str, Any]]:
    """The sites that round and the other parts of the sum, the largest share first."""
    parts = [
        {**site, "part": site["name"], "value": site["share"]}
        for site in output["sites"]
        if site["rounds"]
    ]
    rest = {"carrier": "order, inner sums", "unexplained": "not explained by the recipe"}
    parts += [
        {"part": words, "value": output[name]} for name, words in rest.items() if output[name]
    ]
    return sorted(parts, key=lambda part: -part["value"][0])


def _bar(part: Document) -> dict[str, Any]:
    estimate, low, high = (100 * float(end) for end in part["value"])
    alone = 100 * float(part["alone"][0]) if "alone" in part else math.nan
    known = {"share": estimate, "low": low, "high": high, "alone": alone}
    return {"part": part["part"]} | {n: v if math.isfinite(v) else None for n, v in known.items()}


def _rows(output: Document) -> Sequence[Sequence[str]]:
    return [
        [part["part"], part.get("choice", ""), _share(part["value"])]
        + [_share(part[name]) if name in part else "" for name in ("alone", "restored", "left")]
        + [f"{float(part['gain'][0]):+.1e}" if "gain" in part else ""]
        for part in _parts(output)
    ]


def _share(interval: Sequence[float]) -> str:
    estimate, low, high = (100 * float(end) for end in interval)
    if not (math.isfinite(low) and math.isfinite(high)):
        return f"{estimate:.1f} %"
    return f"{estimate:.1f} % [{low:.1f}, {high:.1f}]"


def _caption(output: Document) -> str:
    rmse, gain = (float(output[name][0]) for name in ("rmse", "gain"))
    return (
        f"What each site causes of the squared error of {output['name']} (rmse {rmse:.2e}, gain "
        f"{gain:+.1e}): its Shapley value, with a 95 % interval; the tick is what it causes alone."
    )


def _page(document: Document, outputs: Sequence[Document]) -> str:
    return rendered(
        "ablation.html.j2",
        document=document, outputs=outputs, columns=COLUMNS, facts=_facts(document),
    )  # fmt: skip


def _facts(document: Document) -> list[tuple[str, str]]:
    parameters = {n: v for n, v in document["parameters"].items() if v is not None}
    return [
        ("recipe", str(document["recipe"])),
        ("format", str(document["format"])),
        ("parameters", ", ".join(f"{name} {value}" for name, value in parameters.items())),
        ("seeds", str(len(document["seeds"]))),
        ("permutations", str(document["permutations"] or "all coalitions")),
    ]
