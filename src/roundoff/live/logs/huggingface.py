"""`trainer_state.json` of Hugging Face's Trainer, and folders that have one.

Its Trainer hides a NaN of the loss unless it was made with `logging_nan_inf_filter=False`: the mean
of the steps before is logged in its place. A NaN of `grad_norm` is logged.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from roundoff.errors import UsageError
from roundoff.live.logs.series import Series, collected
from roundoff.store.disk import disk_errors

__all__ = ["NAME", "newest", "read"]

NAME = "trainer_state.json"


def newest(folder: Path) -> Path | None:
    """The state of a checkpoint, or of the newest checkpoint of an output folder."""
    if (folder / NAME).is_file():
        return folder / NAME
    states = [path for path in folder.glob(f"checkpoint-*/{NAME}") if path.is_file()]
    return max(states, key=lambda path: (_step(path), path.name), default=None)


def _step(path: Path) -> int:
    digits = path.parent.name.rpartition("-")[2]
    return int(digits) if digits.isdecimal() else -1


def read(path: Path) -> list[Series]:
    """The series of `log_history`."""
    with disk_errors("read", path):
        text = path.read_text(encoding="utf-8")
    try:
        state: Any = json.loads(text)
        history: Any = cast("dict[str, Any]", state)["log_history"]
        return collected(dict(row) for row in history)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = "no log_history" if isinstance(error, KeyError) else str(error)
        raise UsageError(f"{path}: {what}; expected a trainer_state.json") from None
