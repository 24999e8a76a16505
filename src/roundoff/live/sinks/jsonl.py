"""Readings as lines of JSON in one file; strict, with NaN and infinities as strings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from roundoff.records import Reading
from roundoff.store.disk import AppendFile, check_writable
from roundoff.store.json import dumps

__all__ = ["JsonLines"]


class JsonLines:
    """One line a reading: step, of, name, head, values. An existing file is added to.

    A path that cannot be written is a `RunError`.
    """

    def __init__(self, path: str | Path) -> None:
        check_writable(Path(path))
        self._file = AppendFile(Path(path))

    def write(self, step: int, readings: Sequence[Reading]) -> None:  # noqa: ARG002
        """Add the lines, all or none."""
        if readings:
            self._file.append("\n".join(dumps(reading.to_record()) for reading in readings))

    def close(self) -> None:
        """Close the file."""
        self._file.close()
