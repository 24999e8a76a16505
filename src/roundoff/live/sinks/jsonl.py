"""Readings as lines of JSON in one file; strict, with NaN and infinities as strings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from roundoff.records import Finding, Reading
from roundoff.store.disk import AppendFile, check_writable, moment
from roundoff.store.json import dumps

__all__ = ["JsonLines"]


class JsonLines:
    """One line a reading: begun, step, of, name, pooled, head, values.

    A finding's line has `finding` and `why`. An existing file is added to: `begun` is when the
    training was first written, and tells those of one file apart. A path that cannot be written is
    a `RunError`.
    """

    def __init__(self, path: str | Path) -> None:
        self._path, self._file, self._begun = Path(path), None, ""
        check_writable(self._path)

    _file: AppendFile | None

    def write(
        self,
        step: int,  # noqa: ARG002 - each reading has it
        readings: Sequence[Reading],
        findings: Sequence[Finding],
    ) -> None:
        """Add the lines, all or none."""
        lines = [reading.to_record() for reading in readings]
        lines += [{"finding": f.what, **f.to_record()} for f in findings]
        if not lines:
            return
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file, self._begun = AppendFile(self._path), moment()
        self._file.append("\n".join(dumps({"begun": self._begun, **line}) for line in lines))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
