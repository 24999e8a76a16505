"""Writing into a run: claim cells, append one line for each, tell others what is in hand."""

from __future__ import annotations

import os
import re
import secrets
import socket
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

from roundoff.errors import RunError
from roundoff.store.disk import PRIVATE_PREFIX, AppendFile, locked, moment
from roundoff.store.json import dumps
from roundoff.store.leases import Lease
from roundoff.store.lines import Rows, check_record

__all__ = ["Writer"]


class Writer:
    """One writer of a run; a context manager, made by `Run.writer`.

    It owns one new file `cells-<name>.jsonl`, which appears with its first line, and a
    lease that it keeps locked. Several writers, on several machines if the file system
    is shared and has working locks, never have one cell in hand twice. Not for several
    threads: each takes its own writer.
    """

    def __init__(self, folder: Path) -> None:
        host = re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname())[:40]
        # Files are read in the order of their names, and so in that in which they were begun.
        self.name = f"{moment()}-{host}-{os.getpid()}-{secrets.token_hex(4)}"
        self._folder = folder
        self._rows = Rows(folder)
        self._mine: set[str] = set()
        self._failed_before: set[str] = set()
        self._file: AppendFile | None = None
        self._lease: Lease | None = None

    def __enter__(self) -> Writer:
        with self._lock():
            self._lease = Lease(self._folder / "leases", self.name)
            self._rows.refresh()
        self._failed_before = self._rows.ids("failed")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
        self._open_lease().end()
        self._lease = None

    def claim(self, ids: Iterable[str]) -> list[str]:
        """Take in hand those of `ids` that are still to do, in their order.

        Left out are finished cells, cells in hand (of another live writer, or
        of this one already) and cells that failed since this writer began; a cell that
        had failed before is tried again. Claim as much as you will start soon: what
        is in hand here, nobody else does.
        """
        with self._lock():
            lease = self._open_lease()
            self._rows.refresh()
            taken = self._rows.finished() | lease.others() | self._mine
            taken |= self._rows.ids("failed") - self._failed_before
            free = [key for key in dict.fromkeys(ids) if key not in taken]
            lease.take(free)
            self._mine.update(free)
        return free

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line, on the disk when this returns; its cell is then no longer in hand.

        `record` needs an "id", a "status" ("ok", "skipped" or "failed") and a "schema". A full disk
        is a `RunError`; the file then ends where it ended before, and the same record
        can be appended again.
        """
        self._open_lease()
        line = dumps(check_record(record))
        if self._file is None:
            self._file = AppendFile(self._folder / f"cells-{self.name}.jsonl")
        self._file.append(line)
        self._mine.discard(record["id"])

    def release(self, ids: Iterable[str]) -> None:
        """Put cells back that this writer has in hand and will not do."""
        returned = [key for key in dict.fromkeys(ids) if key in self._mine]
        with self._lock():
            self._open_lease().give_back(returned)
        self._mine.difference_update(returned)

    def _lock(self) -> AbstractContextManager[None]:
        return locked(self._folder / f"{PRIVATE_PREFIX}lock")

    def _open_lease(self) -> Lease:
        if self._lease is None:
            raise RunError(f"this writer of {self._folder} is closed; use it inside a with block")
        return self._lease
