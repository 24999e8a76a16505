"""Writing what a report is made of: whole files, and charts as pictures."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from roundoff.errors import RunError
from roundoff.registry import require
from roundoff.report.charts import altair
from roundoff.report.look import DARK, LIGHT
from roundoff.store.disk import check_writable, replacing

__all__ = [
    "bundle", "check_folder", "embedded_json", "inline", "png", "rendered", "svg", "write_whole",
]  # fmt: skip

SCALE = 2.0
"""Pixels of a picture for each pixel of a chart."""


def check_folder(folder: Path) -> None:
    """Raise, before any work, what writing a report into a folder would raise after it."""
    for library in ("altair", "vl_convert", "jinja2"):
        require(library, extra="report", purpose="a report")
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is no folder; name an empty or a new one")
    check_writable(folder, folder=True)


def write_whole(path: Path, content: bytes) -> Path:
    """Write a file so that a reader sees the old one or the new one, or raise a `RunError`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return path


def rendered(template: str, *, safe: Mapping[str, str] | None = None, **values: object) -> str:
    """A page from a template of this room: `values` are escaped, `safe` and the style are not."""
    jinja2 = require("jinja2", extra="report", purpose="a report")
    room = files("roundoff.report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    own = {"css": room.joinpath("page.css").read_text(encoding="utf-8"), **(safe or {})}
    parts = {name: environment.filters["safe"](text) for name, text in own.items()}
    text: str = environment.from_string(room.joinpath(template).read_text("utf-8")).render(
        light=LIGHT, dark=DARK, **values, **parts
    )
    return text


def inline(picture: str) -> str:
    """An SVG picture as an address that a page holds in itself."""
    return "data:image/svg+xml;base64," + base64.b64encode(picture.encode()).decode()


def embedded_json(value: object) -> str:
    """Strict JSON that may stand inside a `<script>`: nothing in it can end the script."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def bundle() -> str:
    """Vega, Vega-Lite and their embedding as one script, for the Vega-Lite that Altair writes."""
    text: str = _convert().javascript_bundle(vl_version=_version())
    if "</script" in text.lower():
        text = text.replace("</script", "<\\/script").replace("</SCRIPT", "<\\/SCRIPT")
    return text


def svg(spec: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The chart as an SVG picture; the same chart gives the same bytes."""
    text: str = _convert().vegalite_to_svg(
        dict(spec), vl_version=_version(), config=dict(config), allowed_base_urls=[]
    )
    seen: dict[str, str] = {}  # the converter numbers these through all its pictures

    def renumbered(found: re.Match[str]) -> str:
        return found[1] + seen.setdefault(found[2], f"{found[3]}{len(seen)}")

    return re.sub(r'(id="|url\(#)((clip|gradient_)\d+)', renumbered, text)


def png(picture: str) -> bytes:
    """An SVG picture as a PNG picture."""
    return _convert().svg_to_png(picture, scale=SCALE)


def _convert() -> Any:
    return require("vl_convert", extra="report", purpose="a report")


def _version() -> str:
    """Altair's version of Vega-Lite, as vl-convert spells it."""
    return ".".join(altair().SCHEMA_VERSION.split(".")[:2])
