"""Vega-Lite specs, built with Altair: lines, dots, a map of ratios, size against bias.

Every chart reads rows with fixed column names (`candidate`, `panel`, `x`, `value`, `low`,
`high`, ...): what a run calls things is data and titles, never part of an expression. The
colours come from the page's configuration, so that they follow light and dark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from roundoff.registry import require
from roundoff.report.figure import Names, Scale, Spec

__all__ = ["bias_chart", "dot_chart", "line_chart", "ratio_chart"]

SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
FADED = 0.08
ROW = 24
"""Height in pixels of a line of a chart with names on its vertical axis."""


def altair() -> Any:
    """The Altair module; a `MissingLibraryError` says which extra brings it."""
    return require("altair", extra="report", purpose="a report")


def _finish(chart: Any, panels: Sequence[str], *, left: int, least: int) -> Spec:
    """The chart as a spec, in panels if there are several.

    `left` (room for the vertical axis) and `least` (narrowest panel) tell the page how to
    lay the panels out.
    """
    alt = altair()
    if len(panels) > 1:
        head = alt.Header(title=None, labelAnchor="start", labelFontWeight="bold", labelLimit=340)
        facet = alt.Facet("panel:N", title=None, sort=list(panels), header=head)
        points = alt.NamedData(name="points")
        chart = chart.facet(facet=facet, data=points, columns=min(2, len(panels)), spacing=18)
    spec: Spec = chart.to_dict(validate=False)
    for part in (spec, spec.get("spec", {})):
        for layer in (part, *part.get("layer", ())):
            layer.pop("data", None)  # Altair's placeholders; the page puts the rows in
    spec.pop("config", None)
    return spec | {"usermeta": {"left": left, "least": least, "panels": len(panels)}}


def _chart() -> Any:
    return altair().Chart()


def _scale(scale: Scale) -> Any:
    more: dict[str, Any] = {"constant": scale.constant} if scale.kind == "symlog" else {}
    if scale.kind == "linear":
        more = {"zero": False}
    return altair().Scale(type=scale.kind, domain=list(scale.domain), nice=False, **more)


def _axis(scale: Scale, **rest: Any) -> Any:
    marks = {"values": list(scale.ticks)} if scale.ticks else {"tickCount": 5}
    return altair().Axis(title=scale.title, labelOverlap=True, **marks, **rest)


def _small(scale: Scale) -> str:
    """The format of labels: powers in short, plain numbers where they are easy to read."""
    sizes = [abs(t) for t in (scale.ticks or scale.domain) if t]
    return "~r" if sizes and min(sizes) >= 0.01 and max(sizes) < 1e5 else "~e"


def _colour(names: Names, present: Sequence[str]) -> dict[str, Any]:
    """Colour and shape by candidate, with one legend for both; the same in all figures."""
    alt = altair()
    domain = names.domain()
    shapes = [SHAPES[i % len(SHAPES)] for i in range(len(domain))]
    legend = alt.Legend(title=None, orient="top", values=list(present), symbolOpacity=1)
    if len(present) < 2:
        legend = None
    return {
        "color": alt.Color("candidate:N", scale=alt.Scale(domain=domain), legend=legend),
        "shape": alt.Shape(
            "candidate:N", scale=alt.Scale(domain=domain, range=shapes), legend=legend
        ),
    }


def _pick() -> Any:
    return altair().selection_point(fields=["candidate"], bind="legend")


def _seen(pick: Any, opacity: float = 1.0) -> Any:
    alt = altair()
    return alt.condition(pick, alt.value(opacity), alt.value(FADED))


def _tips(titles: Mapping[str, str]) -> list[Any]:
    """Tooltips: texts by column; the numbers among them with three digits."""
    alt = altair()
    numbers = ("value", "low", "high", "gain", "gain_low", "gain_high", "z")
    return [
        alt.Tooltip(field, type="quantitative", format=".3g", title=title)
        if field in numbers
        else alt.Tooltip(field, type="nominal", title=title)
        for field, title in titles.items()
    ]


def line_chart(
    x: Scale, y: Scale, *, names: Names, present: Sequence[str], panels: Sequence[str]
) -> Spec:
    """One line a candidate with the band of its interval; kernels dashed, recipes solid."""
    alt = altair()
    pick = _pick()
    colour = _colour(names, present)
    across = alt.X("x:Q", scale=_scale(x), axis=_axis(x, format="~r"))
    up = alt.Y("value:Q", scale=_scale(y), axis=_axis(y, format=_small(y)))
    dash = alt.StrokeDash(
        "kind:N", legend=None, scale=alt.Scale(domain=["kernel", "recipe"], range=[[5, 4], [1, 0]])
    )
    tips = _tips({
        "candidate": "candidate", "panel": "where", "x": x.title, "value": y.title,
        "low": "95 % from", "high": "to", "seeds": "seeds",
    })  # fmt: skip
    band = _chart().mark_area(clip=True).encode(
        x=across, y=alt.Y("low:Q", scale=_scale(y)), y2="high:Q", color=colour["color"],
        opacity=_seen(pick, 0.18),
    )  # fmt: skip
    line = (
        _chart()
        .mark_line(strokeWidth=2, clip=True)
        .encode(x=across, y=up, color=colour["color"], strokeDash=dash, opacity=_seen(pick))
    )
    mark = _chart().mark_point(filled=True, size=48, opacity=1).encode(
        x=across, y=up, tooltip=tips, opacity=_seen(pick), **colour
    )  # fmt: skip
    layers = alt.layer(band, line, mark.add_params(pick)).properties(height=190, width=250)
    return _finish(layers, panels, left=64, least=230)


def dot_chart(
    x: Scale, *, panels: Sequence[str], rows: Sequence[str], groups: Sequence[str],
    tips: Mapping[str, str], line: float | None = None, title: str | None = None,
) -> Spec:  # fmt: skip
    """One row a `label`, dots at `value` with their interval, in the colours of `group`.

    `title` says what the groups are. A vertical line at `line` marks what means "no difference".
    """
    alt = altair()
    pick = alt.selection_point(fields=["group"], bind="legend")
    up = alt.Y("label:N", sort=list(rows), axis=alt.Axis(title=None))
    across = alt.X("value:Q", scale=_scale(x), axis=_axis(x, format=_small(x)))
    legend = alt.Legend(title=title, orient="top", symbolOpacity=1) if len(groups) > 1 else None
    domain = {"domain": list(groups)}
    shapes = [SHAPES[i % len(SHAPES)] for i in range(len(groups))]
    colour = alt.Color("group:N", scale=alt.Scale(**domain), legend=legend)
    shape = alt.Shape("group:N", scale=alt.Scale(**domain, range=shapes), legend=legend)
    interval = _chart().mark_rule(strokeWidth=2, clip=True).encode(
        x=alt.X("low:Q", scale=_scale(x)), x2="high:Q", y=up, color=colour,
        opacity=_seen(pick, 0.5),
    )  # fmt: skip
    dot = (
        _chart()
        .mark_point(filled=True, size=52, clip=True, opacity=1)
        .encode(x=across, y=up, color=colour, shape=shape, tooltip=_tips(tips), opacity=_seen(pick))
    )
    parts = [interval, dot.add_params(pick)]
    if line is not None:
        at = alt.XDatum(line, scale=_scale(x))
        parts.insert(0, _chart().mark_rule(strokeDash=[3, 3], size=1, color="#888").encode(x=at))
    chart = alt.layer(*parts).properties(width=300, height=alt.Step(ROW))
    return _finish(chart, panels, left=_left(rows), least=280)


def _left(rows: Sequence[str]) -> int:
    return min(230, 24 + round(6.2 * max(map(len, rows), default=0)))


def ratio_chart(
    x: str, *, panels: Sequence[str], rows: Sequence[str], columns: Sequence[str], reach: float
) -> Spec:
    """A map of ratios: the colour says the power of two, the number the ratio.

    `reach` is the power of two at which the colours end on either side.
    """
    alt = altair()
    dark = alt.param(name="dark", value=False)
    across = alt.X("column:N", sort=list(columns), axis=alt.Axis(title=x, labelAngle=0))
    up = alt.Y("label:N", sort=list(rows), axis=alt.Axis(title=None))
    legend = alt.Legend(
        title="x the baseline's error", orient="bottom", gradientLength=220,
        values=[part * reach for part in (-1, -0.5, 0, 0.5, 1)],
        labelExpr="format(pow(2, datum.value), '.2~g') + 'x'",
    )  # fmt: skip
    scale = alt.Scale(domain=[-reach, 0, reach], clamp=True, interpolate="rgb")
    shade = alt.Color("shade:Q", scale=scale, legend=legend)
    tips = _tips({
        "label": "candidate", "panel": "where", "column": x or "where", "value": "ratio",
        "low": "95 % from", "high": "to", "seeds": "seeds",
    })  # fmt: skip
    base = _chart().encode(x=across, y=up)
    box = base.mark_rect(stroke=None).encode(color=shade, tooltip=tips)
    strong = f"dark || abs(datum.shade) > {0.78 * reach:.3g}"
    ink = alt.condition(strong, alt.value("#ffffff"), alt.value("#1b1f24"))
    digits = "format(datum.value, datum.value < 99.5 ? '.2~g' : ',.0f')"
    text = base.transform_filter("isValid(datum.value)").transform_calculate(text=digits)
    text = text.mark_text(fontSize=11).encode(text="text:N", color=ink)
    size = {"width": 46 * max(1, len(columns)), "height": alt.Step(ROW)}
    chart = alt.layer(box, text).properties(**size)
    return _finish(chart.add_params(dark), panels, left=_left(rows), least=46 * len(columns))


def bias_chart(
    x: Scale, y: Scale, *, names: Names, present: Sequence[str], panels: Sequence[str]
) -> Spec:
    """Size of the error across, its gain upwards with an interval: on the line is noise."""
    alt = altair()
    pick = _pick()
    colour = _colour(names, present)
    across = alt.X("value:Q", scale=_scale(x), axis=_axis(x, format=_small(x)))
    up = alt.Y("gain:Q", scale=_scale(y), axis=_axis(y, format="~e"))
    tips = _tips({
        "candidate": "candidate", "where": "where", "value": x.title, "gain": "gain",
        "gain_low": "95 % from", "gain_high": "to", "z": "gain / standard error", "seeds": "seeds",
    })  # fmt: skip
    zero = _chart().mark_rule(color="#888", size=1).encode(y=alt.datum(0))
    bar = _chart().mark_rule(strokeWidth=2, clip=True).encode(
        x=across, y=alt.Y("gain_low:Q", scale=_scale(y)), y2="gain_high:Q", color=colour["color"],
        opacity=_seen(pick, 0.7),
    )  # fmt: skip
    dot = _chart().mark_point(filled=True, size=60, opacity=1).encode(
        x=across, y=up, tooltip=tips, opacity=_seen(pick), **colour
    )  # fmt: skip
    chart = alt.layer(zero, bar, dot.add_params(pick)).properties(width=300, height=260)
    return _finish(chart, panels, left=70, least=270)
