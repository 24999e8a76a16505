"""Reading lines that other processes may be appending to at this moment.

`Rows` follows the `cells-*.jsonl` files of one folder and folds them into one record
per id; what is damaged is reported by file and line and costs only itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from roundoff.errors import RunError, UsageError
from roundoff.records import SCHEMA
from roundoff.store.disk import disk_errors
from roundoff.store.json import loads

__all__ = ["STATUSES", "Record", "Rows", "check_record", "check_schema"]

STATUSES = ("ok", "skipped", "failed")

Record = dict[str, Any]


class _Rank(NamedTuple):
    """Which of two lines with one id counts: the lower. The same in any order of reading."""

    status: int
    file: str
    line: int


@dataclass
class _Place:
    """How far a file has been read."""

    offset: int = 0
    line: int = 0


class Rows(Mapping[str, Record]):
    """The records of a folder by id, in the order of file and line; of files, in that of their
    names, which begin with the time at which they were begun.

    Where an id occurs more than once, the first "ok" line counts, else the first "skipped",
    else the first "failed" one. A last line without its newline that is not whole is
    being written, or its writer was killed: it is not there yet, and no problem.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._forget()

    def _forget(self) -> None:
        self.problems: list[str] = []
        self._places: dict[str, _Place] = {}
        self._ranked: dict[str, tuple[_Rank, Record]] = {}

    def __getitem__(self, key: str) -> Record:
        return self._ranked[key][1]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._ranked, key=lambda key: self._ranked[key][0][1:]))

    def __len__(self) -> int:
        return len(self._ranked)

    def ids(self, *statuses: str) -> set[str]:
        """The ids whose record has one of these statuses."""
        return {key for key, (_, record) in self._ranked.items() if record["status"] in statuses}

    def finished(self) -> set[str]:
        """The ids that need no more work: done, or skipped for a reason that is in the id."""
        return self.ids("ok", "skipped")

    def refresh(self) -> int:
        """Read what has been appended since the last time; the number of new lines."""
        with disk_errors("read", self.folder):
            sizes = {p.name: p.stat().st_size for p in sorted(self.folder.glob("cells-*.jsonl"))}
        if any(sizes.get(name, 0) < place.offset for name, place in self._places.items()):
            self._forget()  # a file was cut or removed: what was read is no longer so
        return sum(self._follow(name, size) for name, size in sizes.items())

    def _follow(self, name: str, size: int) -> int:
        place = self._places.setdefault(name, _Place())
        if size == place.offset:
            return 0
        path = self.folder / name
        with disk_errors("read", path), path.open("rb") as file:
            file.seek(place.offset)
            *lines, rest = file.read().split(b"\n")
        for line in lines:
            place.offset += len(line) + 1
            place.line += 1
            if line.strip():
                self._take(line, name, place.line)
        if _is_record(rest):
            self._take(rest, name, place.line + 1)  # seen again once its newline is there
        return len(lines)

    def _take(self, line: bytes, name: str, number: int) -> None:
        try:
            record = check_record(loads(line))
        except UsageError as error:
            self.problems.append(f"{name}:{number}: {error}")
            return
        check_schema(record, f"{self.folder / name}:{number}")
        rank = _Rank(STATUSES.index(record["status"]), name, number)
        known = self._ranked.get(record["id"])
        if known is None or rank < known[0]:
            self._ranked[record["id"]] = (rank, record)


def _is_record(line: bytes) -> bool:
    """Whether a line without newline is all there: no part of an object is an object."""
    try:
        return bool(line) and bool(check_record(loads(line)))
    except UsageError:
        return False


def check_record(value: object) -> Record:
    """`value` if it is what a line must be, else a `UsageError` that says what is wrong."""
    if not isinstance(value, Mapping):
        raise UsageError(f"a line must be a JSON object, not {type(value).__name__}")
    record = cast("Record", value)
    identity, status, schema = (record.get(key) for key in ("id", "status", "schema"))
    if not (isinstance(identity, str) and identity and identity.isprintable()):
        raise UsageError(f"'id' must be a text, not {identity!r}")
    if status not in STATUSES:
        raise UsageError(f"'status' must be 'ok', 'skipped' or 'failed', not {status!r}")
    if not isinstance(schema, int):
        raise UsageError(f"'schema' must be an integer, not {schema!r}")
    return record


def check_schema(document: Mapping[str, Any], place: str) -> None:
    """Refuse what a newer roundoff wrote, as its words may mean something else."""
    schema = document.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise RunError(
            f"{place} has schema {schema}, and this roundoff knows schemas up to {SCHEMA}; "
            f"upgrade with: pip install --upgrade roundoff"
        )
