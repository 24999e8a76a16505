"""Vega-Lite specs, built with Altair: lines, curves, dots, heat maps, size against bias.

Every chart reads rows with fixed column names (`candidate`, `panel`, `x`, `value`, `low`,
`high`, ...): what a run calls things is data and titles, never part of an expression. The
colours come from the page's configuration, so that they follow light and dark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from roundoff.registry import require
from roundoff.report.figure import Names, Scale, Spec

__all__ = [
    "Shade", "bias_chart", "curve_chart", "dot_chart", "heat_map", "line_chart", "ratio_chart",
]  # fmt: skip

SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
HUES = 7
"""How many colours there are before they begin again."""
FADED = 0.08
ROW = 24
"""Height in pixels of a line of a chart with names on its vertical axis."""
LOW_ROW = 17
"""The same where there are more than `FEW_ROWS`."""
FEW_ROWS = 24
BOX = 46
"""Width in pixels of a box of a heat map, its number included."""
EVEN = (0.67, 0.61)
"""Where on the ramp of a heat map light ink and dark ink are equally easy to read: light, dark."""
LETTER = 6.2
"""Width in pixels of a letter of a label, about."""


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
    x: Scale, y: Scale, *, names: Names, present: Sequence[str], panels: Sequence[str],
    level: float | None = None,
) -> Spec:  # fmt: skip
    """One line a candidate with the band of its interval, solid or dashed by its column `dash`.

    A horizontal line at `level` marks what means "no difference".
    """
    alt = altair()
    pick = _pick()
    colour = _colour(names, present)
    across = alt.X("x:Q", scale=_scale(x), axis=_axis(x, format="~r"))
    up = alt.Y("value:Q", scale=_scale(y), axis=_axis(y, format=_small(y)))
    dash = alt.StrokeDash(
        "dash:N", legend=None, scale=alt.Scale(domain=["dashed", "solid"], range=[[5, 4], [1, 0]])
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
    parts = [band, line, mark.add_params(pick)]
    if level is not None:
        at = alt.YDatum(level, scale=_scale(y))
        rule = _chart().mark_rule(strokeDash=[3, 3], size=1, color="#888", clip=True)
        parts.insert(0, rule.encode(y=at))
    height = 190 if len(panels) > 1 else 300
    layers = alt.layer(*parts).properties(height=height, width=250)
    return _finish(layers, panels, left=64, least=230)


def curve_chart(x: Scale, y: Scale, *, names: Names, present: Sequence[str]) -> Spec:
    """One thin line a candidate, for many points; dashed where the colours begin again."""
    alt = altair()
    pick = _pick()
    colour = _colour(names, present)["color"]
    domain = names.domain()
    dashes = [[1, 0] if i < HUES else [4, 3] for i in range(len(domain))]
    dash = alt.StrokeDash(
        "candidate:N", scale=alt.Scale(domain=domain, range=dashes), legend=colour["legend"]
    )
    across = alt.X("x:Q", scale=_scale(x), axis=_axis(x, format="~r"))
    up = alt.Y("value:Q", scale=_scale(y), axis=_axis(y, format=_small(y)))
    tips = _tips({"candidate": "candidate", "x": x.title, "value": y.title})
    line = _chart().mark_line(strokeWidth=1.3, clip=True).encode(
        x=across, y=up, color=colour, strokeDash=dash, opacity=_seen(pick), tooltip=tips
    )  # fmt: skip
    return _finish(
        line.add_params(pick).properties(height=260, width=250), [""], left=64, least=230
    )


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
    return min(250, 24 + round(LETTER * max(map(len, rows), default=0)))


@dataclass(frozen=True, slots=True)
class Shade:
    """How a heat map turns its column `value` into colour and text, by expressions of Vega.

    `of` makes a shade of a value. `ends` (two, or three with what is neutral in the middle) are
    the shades at which the colours end; `marks` those that the legend shows, each spelled by
    `spell`; `text` is a box's number. All are ours: nothing in them comes from a run.
    """

    title: str
    of: str
    ends: Sequence[float]
    marks: Sequence[float]
    spell: str
    text: str

    @property
    def ramp(self) -> Literal["diverging", "heatmap"]:
        """Which of the page's colours: from less over equal to more, or from little to much."""
        return "diverging" if len(self.ends) > 2 else "heatmap"

    @property
    def light_ink(self) -> str:
        """Where a number must be light to be read: on strong colours, on all in the dark."""
        low, high = self.ends[0], self.ends[-1]
        if self.ramp == "diverging":
            return f"dark || abs(datum.shade) > {0.78 * high:.6g}"
        in_light, in_dark = (low + part * (high - low) for part in EVEN)
        return f"dark ? !(datum.shade > {in_dark:.6g}) : datum.shade > {in_light:.6g}"


def heat_map(
    x: str, shade: Shade, *, panels: Sequence[str], rows: Sequence[str], columns: Sequence[str],
    tips: Mapping[str, str],
) -> Spec:  # fmt: skip
    """A box for each `label` (rows) and `column`, in the colour of its `value`, which it holds.

    A box whose value has no colour stays empty but for it: 0, or a word such as "nan".
    Numbers vanish where boxes are too narrow for them, long labels lose their beginning.
    """
    alt = altair()
    params = [alt.param(name="dark", value=False), alt.param(name="letters", value=60)]
    slanted = max(map(len, columns), default=0) * LETTER > BOX
    angle = {"labelAngle": -35, "labelAlign": "left"} if slanted else {"labelAngle": 0}
    side = "top" if slanted or len(rows) > FEW_ROWS / 2 else "bottom"
    head = alt.Axis(title=x or None, labelOverlap=False, orient=side, **angle)
    cut = "length(datum.label) > letters ? '\u2026' + slice(datum.label, -letters) : datum.label"
    across = alt.X("column:N", sort=list(columns), axis=head)
    up = alt.Y("label:N", sort=list(rows), axis=alt.Axis(title=None, labelExpr=cut, labelLimit=0))
    legend = alt.Legend(
        title=shade.title, orient="bottom", values=list(shade.marks),
        labelExpr=shade.spell,
    )  # fmt: skip
    scale = alt.Scale(domain=list(shade.ends), range=shade.ramp, clamp=True, interpolate="rgb")
    base = _chart().encode(x=across, y=up).transform_calculate(shade=shade.of)
    box = base.mark_rect(stroke=None).encode(
        color=alt.Color("shade:Q", scale=scale, legend=legend), tooltip=_tips(tips)
    )
    ink = {"condition": [
        {"test": "!isValid(datum.shade)", "value": {"expr": "dark ? '#e8eaed' : '#1b1f24'"}},
        {"test": shade.light_ink, "value": "#ffffff"}], "value": "#1b1f24"}  # fmt: skip
    wide = "bandwidth('x') > 36"
    words = f"isNumber(datum.value) ? {shade.text} : datum.value"
    text = base.transform_filter("isValid(datum.value)").transform_calculate(text=words)
    text = text.mark_text(fontSize=11 if len(rows) <= FEW_ROWS else 10).encode(
        text="text:N", color=ink, opacity=alt.condition(wide, alt.value(1), alt.value(0))
    )
    step = ROW if len(rows) <= FEW_ROWS else LOW_ROW
    size = {"width": BOX * max(1, len(columns)), "height": alt.Step(step)}
    chart = alt.layer(box, text).properties(**size).add_params(*params)
    return _finish(chart, panels, left=_left(rows), least=BOX * len(columns))


def ratio_chart(
    x: str, *, panels: Sequence[str], rows: Sequence[str], columns: Sequence[str], reach: float
) -> Spec:
    """A map of ratios: the colour says the power of two, the number the ratio.

    `reach` is the power of two at which the colours end on either side.
    """
    shade = Shade(
        "x the baseline's error", of="log(datum.value) / LN2", ends=(-reach, 0, reach),
        marks=[part * reach for part in (-1, -0.5, 0, 0.5, 1)],
        spell="format(pow(2, datum.value), '.2~g') + 'x'",
        text="format(datum.value, datum.value < 99.5 ? '.2~g' : ',.0f')",
    )  # fmt: skip
    tips = {
        "label": "candidate", "panel": "where", "column": x or "where", "value": "ratio",
        "low": "95 % from", "high": "to", "seeds": "seeds",
    }  # fmt: skip
    return heat_map(x, shade, panels=panels, rows=rows, columns=columns, tips=tips)


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
