"""A run: one folder that holds what was measured, readable while it is being written."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, cast

from roundoff.errors import RunError, UsageError
from roundoff.records import SCHEMA
from roundoff.store import live, tables
from roundoff.store.disk import PRIVATE_PREFIX, check_writable, disk_errors, locked, replace_file
from roundoff.store.json import dumps, loads
from roundoff.store.lines import Record, Rows, check_schema
from roundoff.store.writer import Writer

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

__all__ = ["Run"]

KIND = "roundoff run"  # in the manifest: other tools have a manifest.json too


class Run:
    """A run directory; `Run.open` reads one, `Run.create_or_open` also writes.

    Reading sees each id once: the first "ok" line counts, over "skipped" and "failed". Every
    reading method first reads what has been appended since the last.
    """

    def __init__(self, path: Path, manifest: Record, *, writable: bool) -> None:
        self.path = path
        self.manifest = manifest
        self.writable = writable
        self._rows = Rows(path)

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open an existing run to read it; nothing in the folder is touched.

        A path that is no run, or a run of a newer roundoff, is a `RunError`.
        """
        return cls._open(Path(path), writable=False)

    @classmethod
    def create_or_open(cls, path: str | Path, *, manifest: Mapping[str, Any]) -> Run:
        """Open the run at `path` to write into it, or make one where nothing is yet.

        A new run stores `manifest`, with "kind", "schema" and "created" added; an
        existing run keeps the manifest that it has. A folder that holds something
        else is a `RunError`, and nothing is written into it.
        """
        folder = Path(path)
        if not (folder / "manifest.json").exists():
            _check_free(folder)
            with disk_errors("create the run", folder):
                folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / f"{PRIVATE_PREFIX}lock"):
                if not (folder / "manifest.json").exists():  # another process was faster
                    head = {"kind": KIND, "schema": SCHEMA, "created": _now()}
                    replace_file(folder / "manifest.json", dumps({**head, **manifest}) + "\n")
        return cls._open(folder, writable=True)

    @classmethod
    def check(cls, path: str | Path) -> None:
        """Raise, before any work, the `RunError` of `create_or_open`; leave nothing."""
        folder = Path(path)
        if (folder / "manifest.json").exists():
            cls._open(folder, writable=True)
        else:
            _check_free(folder)
        check_writable(folder, folder=True)

    @classmethod
    def _open(cls, folder: Path, *, writable: bool) -> Run:
        if not (folder / "manifest.json").is_file():
            found = (
                "an empty or foreign folder" if folder.is_dir()
                else "a file" if folder.exists() else "no such folder"
            )  # fmt: skip
            raise RunError(
                f"{folder} is no run: expected a folder with a manifest.json, found {found}"
            )
        manifest = _read(folder / "manifest.json")
        if manifest.get("kind") != KIND:
            raise RunError(f"{folder} is no run: its manifest.json is of something else")
        check_schema(manifest, str(folder / "manifest.json"))
        return cls(folder, manifest, writable=writable)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def problems(self) -> list[str]:
        """What could not be read, as "file:line: what"; all other lines are read."""
        return list(self.read().problems)

    def refresh(self) -> int:
        """Read what was appended since the last reading; the number of new lines."""
        return self._rows.refresh()

    def read(self) -> Rows:
        """The records by id, as they are now."""
        self.refresh()
        return self._rows

    def rows(self) -> list[Record]:
        """The records, nested as they were written.

        Of several trainings that a monitor watched into this run, one that began at a step stands
        for all from that step on: what it took the place of is in the files, and left out here.
        """
        return live.current(self.read().values())

    def finished_ids(self) -> set[str]:
        """The ids with an "ok" or "skipped" line; a cell that failed is not finished."""
        return self.read().finished()

    def writer(self) -> Writer:
        """A new writer of this run, to be used in a `with` block."""
        self._check_writable()
        return Writer(self.path)

    def write_document(self, name: str, document: Mapping[str, Any]) -> None:
        """Write a JSON document of the run, such as "claims.json", replacing it whole."""
        self._check_writable()
        replace_file(self._document(name), dumps(document) + "\n")

    def read_document(self, name: str) -> Record:
        """Read a JSON document of the run; a missing or damaged one is a `RunError`."""
        document = _read(self._document(name))
        check_schema(document, str(self.path / name))
        return document

    def documents(self, folder: str) -> dict[str, Record]:
        """All documents of a sub-folder, such as "environments", by name without ".json"."""
        paths = sorted((self.path / folder).glob("*.json"))
        return {p.stem: self.read_document(f"{folder}/{p.name}") for p in paths}

    def frame(self) -> pd.DataFrame:
        """The records as a pandas DataFrame, one row a cell, columns as in `tables.flatten`.

        What is logged along a training is left out; `sql` has tables of it.
        NaN and infinities stay floats; an integer column with missing values is Int64.
        Needs pandas (the extra `analysis`).
        """
        return tables.frame(tables.apart(self.rows())[0])

    def sql(self, query: str) -> pd.DataFrame:
        """Ask the run in SQL (DuckDB, in memory); the tables are:

        `cells`, one row a cell; `environments`, one row a digest; `claims`, one row an
        entry of the list "claims" in claims.json; each `series/<name>.parquet` as `<name>`;
        what was logged along trainings as `log`, `distances`, `tensors` and `direct`, with
        the `id` of the cell and the arm as `part`; and what a monitor saw as `live`, one row a
        reading, and `findings`. A missing value is NULL, a NaN is NaN:
        `max` of a column with a NaN is NaN. A query that DuckDB refuses is a `UsageError`.
        Needs the extra `analysis`.
        """
        environments = [{"digest": k, **v} for k, v in self.documents("environments").items()]
        has_claims = (self.path / "claims.json").exists()
        claims: object = self.read_document("claims.json").get("claims") if has_claims else []
        if not isinstance(claims, list):
            raise RunError(f"{self.path / 'claims.json'} is damaged: expected a list 'claims'")
        cells, series = tables.apart(self.rows())
        parquet = sorted(self.path.glob("series/*.parquet"))
        named: dict[str, list[Record]] = {
            **{name: [] for name in ("live", "findings")},
            **{k: v for k, v in series.items() if k not in {p.stem for p in parquet}},
            "cells": cells,
            "environments": environments,
            "claims": cast("list[Record]", claims),
        }
        return tables.sql(query, named, parquet=parquet)

    def _check_writable(self) -> None:
        if not self.writable:
            raise RunError(
                f"{self.path} was opened for reading; open it with Run.create_or_open to write"
            )

    def _document(self, name: str) -> Path:
        parts = PurePosixPath(name).parts
        plain = all(part not in ("..", "/") and not part.startswith(".") for part in parts)
        if not (parts and plain and name.endswith(".json")):
            raise UsageError(f"{name!r} is no document of a run; expected a name like claims.json")
        return self.path / name


def _check_free(folder: Path) -> None:
    """Refuse a path at which a new run would lie among something else."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RunError(f"{folder} is no run: expected a folder, found a file")
    with disk_errors("read", folder):
        names = sorted(p.name for p in folder.iterdir())
    if "manifest.json" in names:  # another process made the run this moment
        return
    if foreign := [n for n in names if not n.startswith(PRIVATE_PREFIX)]:
        raise RunError(
            f"{folder} is no run, and not empty (it has {', '.join(foreign[:3])}"
            f"{', ...' if len(foreign) > 3 else ''}); name an empty or a new folder"
        )


def _read(path: Path) -> Record:
    with disk_errors("read", path):
        data = path.read_bytes()
    try:
        document = loads(data)
    except UsageError as error:
        raise RunError(f"{path} is damaged: {error}") from None
    if not isinstance(document, dict):
        raise RunError(f"{path} is damaged: expected a JSON object")
    return cast("Record", document)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
