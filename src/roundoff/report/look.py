"""Colours, light and dark, for the page and its charts alike.

The seven hues stay apart in normal, deuteranope and protanope sight (at least 0.13 in OKLab,
and 3:1 against the page); shapes tell candidates apart once more, and repeat at another step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["DARK", "LIGHT", "Look"]

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


@dataclass(frozen=True, slots=True)
class Look:
    """One set of colours; `ramp` runs from less error over equal to more, `heat` up from little."""

    page: str
    panel: str
    ink: str
    soft: str
    line: str
    link: str
    yes: str
    partly: str
    no: str
    unknown: str
    hues: Sequence[str]
    ramp: Sequence[str]
    heat: Sequence[str]

    def config(self, *, background: str | None = None) -> dict[str, Any]:
        """The configuration of Vega-Lite with these colours."""
        text = {"labelColor": self.soft, "titleColor": self.ink, "labelFontSize": 11}
        return {
            "background": background,
            "font": FONT,
            "view": {"stroke": self.line},
            "axis": {**text, "titleFontSize": 12, "titleFontWeight": "normal",
                     "gridColor": self.line, "domainColor": self.line, "tickColor": self.line,
                     "labelLimit": 220},
            "axisY": {"titlePadding": 8, "titleLimit": 190},
            "axisX": {"titleLimit": 300},
            "header": {"labelColor": self.ink, "labelFontSize": 12},
            "legend": {"labelColor": self.ink, "labelFontSize": 12, "titleColor": self.soft,
                       "titleFontWeight": "normal", "labelLimit": 240, "columns": 3,
                       "gradientLength": 300},
            "range": {"category": list(self.hues), "ramp": list(self.heat),
                      "diverging": list(self.ramp), "heatmap": list(self.heat)},
            "text": {"color": self.ink},
        }  # fmt: skip


LIGHT = Look(
    page="#ffffff", panel="#f6f7f9", ink="#1b1f24", soft="#57606a", line="#d8dee4", link="#0a5c96",
    yes="#1a6e3c", partly="#7d4e00", no="#a8201a", unknown="#57606a",
    hues=("#0072b2", "#d55e00", "#339988", "#992255", "#7788ff", "#661100", "#220099"),
    ramp=("#0b4f94", "#5b9fd6", "#eef0f2", "#f0a04b", "#a63c00"),
    heat=("#e9f1f8", "#b7d3ea", "#6fa8d6", "#2a75b5", "#0b3f78"),
)  # fmt: skip
DARK = Look(
    page="#15181d", panel="#1d2127", ink="#e8eaed", soft="#a4adb8", line="#343a43", link="#7cc0f5",
    yes="#5fd08c", partly="#f0b648", no="#ff8f85", unknown="#a4adb8",
    hues=("#56b4e9", "#ff8a3d", "#33ffdd", "#bb0099", "#6644ff", "#f0e442", "#aa4422"),
    ramp=("#1f74bd", "#1f5687", "#2b3038", "#8a4b12", "#b84f0c"),
    heat=("#242c36", "#1f4263", "#2368a3", "#5ea6e0", "#c2e2fb"),
)  # fmt: skip
