"""Writing what a report is made of: whole files, and charts as pictures."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roundoff.errors import RunError
from roundoff.registry import require
from roundoff.report.charts import altair
from roundoff.store.disk import PRIVATE_PREFIX, check_writable, disk_errors

__all__ = ["bundle", "check_folder", "embedded_json", "png", "svg", "write_whole"]

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
    temporary = path.with_name(f"{PRIVATE_PREFIX}{secrets.token_hex(4)}.tmp")
    with disk_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return path


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
