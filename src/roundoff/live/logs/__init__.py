"""Logs of trainings as series, one file a format; `read_log` finds out which it is.

series.py        Series, and numbers as logs of all kinds spell them
huggingface.py   trainer_state.json, checkpoints and output folders
tensorboard.py   event files and folders of them
table.py         CSV
lines.py         JSON lines
run.py           runs of roundoff
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path

from roundoff.errors import UsageError
from roundoff.live.logs import huggingface, lines, run, table, tensorboard
from roundoff.live.logs.series import Series

__all__ = ["Series", "chosen", "read_log"]

KNOWN = (
    "trainer_state.json, a folder of Hugging Face's Trainer, TensorBoard events, .csv, .jsonl, "
    "or a run of roundoff"
)
USUAL = re.compile(r"loss|grad(ient)?s?[-_ ]?norm|gradients/\*/norm")
HELD_OUT = re.compile(r"(?<![a-z])(eval|val|valid|validation|test)(?![a-z])")


def read_log(path: str | Path) -> list[Series]:
    """The series of a log, in the order in which they came up first.

    `UsageError` for a path that is none of the formats, or has no numbers in it.
    """
    place = Path(path)
    found = _read(place)
    if not any(series.points for series in found):
        raise UsageError(f"{place} has no numbers in it; expected a log: {KNOWN}")
    return found


def _read(path: Path) -> list[Series]:
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file or folder; expected a log: {KNOWN}")
    if "tfevents" in path.name:
        return tensorboard.read(path)
    ways = {".csv": table.read, ".tsv": table.read, ".json": huggingface.read}
    ways |= dict.fromkeys((".jsonl", ".ndjson", ".log"), lines.read)
    if path.suffix.lower() not in ways:
        raise UsageError(f"{path} is no log that roundoff knows; expected {KNOWN}")
    return ways[path.suffix.lower()](path)


def _folder(path: Path) -> list[Series]:
    if (path / "manifest.json").is_file():
        return run.read(path)
    state = huggingface.newest(path)
    if state is not None:
        return huggingface.read(state)
    if next(path.rglob(tensorboard.PATTERN), None) is not None:
        return tensorboard.read(path)
    tables = sorted(path.glob("*.csv"))
    if len(tables) == 1:
        return table.read(tables[0])
    raise UsageError(f"{path} holds no log; expected {KNOWN}")


def chosen(series: Sequence[Series], pattern: str | None = None) -> list[Series]:
    """Those whose names fit; without a pattern losses and gradient norms of training.

    `UsageError` where there are none, with names that there are.
    """
    if pattern is not None:
        found = [one for one in series if fnmatch.fnmatchcase(one.name, pattern)]
    else:
        found = [one for one in series if _is_usual(one.name)]
    if not found:
        what = "is called like a loss or a gradient norm" if pattern is None else "fits the pattern"
        names = ", ".join(one.name for one in series[:6])
        more = f" and {len(series) - 6} more" if len(series) > 6 else ""
        asked = "" if pattern is None else f" {pattern!r}"
        raise UsageError(f"no series {what}{asked}; there are {names}{more} (--series PATTERN)")
    return found


def _is_usual(name: str) -> bool:
    lower = name.lower()
    return bool(USUAL.search(lower)) and not HELD_OUT.search(lower)
