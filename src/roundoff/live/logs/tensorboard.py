"""TensorBoard's event files: scalars by tag, of all files of a folder in the order of time."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from roundoff.live.logs.series import Series
from roundoff.registry import require

__all__ = ["PATTERN", "read"]

PATTERN = "*events.out.tfevents*"


def read(path: Path) -> list[Series]:
    """The scalars of an event file, or of a folder of them, each folder's tags apart."""
    require("tensorboard", extra="live", purpose="reading TensorBoard's events")
    events: Any = import_module("tensorboard.backend.event_processing.event_accumulator")
    folders = [path] if path.is_file() else sorted({p.parent for p in path.rglob(PATTERN)})
    found: list[Series] = []
    for folder in folders:
        log = events.EventAccumulator(
            str(folder), size_guidance={events.SCALARS: 0, events.TENSORS: 0}
        )
        log.Reload()
        inside = "" if folder == path else f"{folder.relative_to(path)}/"
        found += [
            Series(inside + tag, tuple((e.step, float(e.value)) for e in log.Scalars(tag)))
            for tag in log.Tags()["scalars"]
        ]
        found += _tensors(log, inside)
    return found


def _tensors(log: Any, inside: str) -> list[Series]:
    """Scalars as TensorFlow 2 writes them: tensors of one number."""
    util: Any = require(
        "tensorboard.util.tensor_util", extra="live", purpose="TensorBoard's events"
    )
    found: list[Series] = []
    for tag in log.Tags()["tensors"]:
        arrays = [(e.step, util.make_ndarray(e.tensor_proto)) for e in log.Tensors(tag)]
        if all(x.size == 1 and x.dtype.kind in "fiu" for _, x in arrays):
            found.append(Series(inside + tag, tuple((s, float(x.reshape(()))) for s, x in arrays)))
    return found
