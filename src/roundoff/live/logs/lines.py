"""JSON lines: one mapping a line, bare NaN and Infinity taken too.

A line of a mapping within a mapping gives names with a dot between. What a monitor wrote
(`roundoff.live.sinks.jsonl`) has one reading a line: its names are put together from what it is of.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from roundoff.errors import UsageError
from roundoff.live.logs.series import Series, collected
from roundoff.store.disk import disk_errors

__all__ = ["flat", "named", "read"]


def read(path: Path) -> list[Series]:
    """The series of a file; a last line that was cut short is passed over."""
    with disk_errors("read", path):
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return collected(_rows(path, lines))


def _rows(path: Path, lines: list[str]) -> Iterator[Mapping[str, Any]]:
    for at, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError):
            if at == len(lines):  # it is being written
                return
            raise UsageError(f"{path}, line {at}: not JSON; expected one mapping a line") from None
        if isinstance(row, dict):
            yield named(flat(cast("dict[str, Any]", row)))


def flat(row: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """The row with mappings within it taken apart."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= flat(cast("Mapping[str, Any]", value), f"{before}{name}.")
        else:
            found[before + name] = value
    return found


def named(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A monitor's reading with names of its own; any other row as it is."""
    if not isinstance(row.get("of"), str) or not isinstance(row.get("name"), str):
        return row
    head = "" if row.get("head") is None else f"[{row['head']}]"
    place = f"{row['of']}/{row['name']}{head}"
    rest = {k: v for k, v in row.items() if k not in ("of", "name", "head", "step")}
    return {"step": row.get("step"), **{f"{place}/{k}": v for k, v in rest.items()}}
