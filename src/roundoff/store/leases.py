"""Which cells a live writer has in hand, so that several writers share one run.

A lease is a file that its writer keeps locked; the kernel frees the lock when the
writer dies, by whatever death, and whoever claims next removes the file.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from pathlib import Path

from roundoff.errors import RunError
from roundoff.store.disk import AppendFile, disk_errors, try_lock

__all__ = ["Lease"]

_LIVE: weakref.WeakSet[Lease] = weakref.WeakSet()


class Lease:
    """A writer's own lease: lines "+id" and "-id", appended under the run's lock."""

    def __init__(self, folder: Path, writer: str) -> None:
        """Create and lock the lease; the run's lock must be held."""
        self.folder = folder
        with disk_errors("write", folder):
            folder.mkdir(exist_ok=True)
        self._file = AppendFile(folder / writer)
        if not try_lock(self._file.fd):
            raise RunError(f"the lease {folder / writer} belongs to another live writer")
        _LIVE.add(self)

    def take(self, ids: Iterable[str]) -> None:
        """Note that these cells are in hand."""
        self._note("+", ids)

    def give_back(self, ids: Iterable[str]) -> None:
        """Note that these cells are no longer in hand."""
        self._note("-", ids)

    def _note(self, sign: str, ids: Iterable[str]) -> None:
        if lines := "\n".join(sign + key for key in ids):
            self._file.append(lines, sync=False)  # a lease need not outlive a power cut

    def others(self) -> set[str]:
        """What the other live writers have in hand; removes the leases of dead ones.

        The run's lock must be held: a lease is then either locked or dead.
        """
        taken: set[str] = set()
        with disk_errors("read", self.folder):
            for path in sorted(self.folder.iterdir()):
                if path != self._file.path:
                    taken |= _in_hand(path)
        return taken

    def end(self) -> None:
        """Remove the lease; twice does no harm."""
        _LIVE.discard(self)
        with disk_errors("remove", self._file.path):
            self._file.path.unlink(missing_ok=True)
        self._file.close()

    def forget(self) -> None:
        """Close the lease in a forked child, which would keep it locked after our death."""
        self._file.close()


def _in_hand(path: Path) -> set[str]:
    """The ids in the lease of a live writer; none, and no file, where it is dead."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # ended this moment
        return set()
    with os.fdopen(fd, "r", encoding="ascii") as file:
        if try_lock(fd):
            path.unlink(missing_ok=True)
            return set()
        *lines, _ = file.read().split("\n")
    signs = {line[1:]: line[0] for line in lines}  # the last sign of an id counts
    return {key for key, sign in signs.items() if sign == "+"}


def _forget_all() -> None:
    for lease in list(_LIVE):
        lease.forget()


os.register_at_fork(after_in_child=_forget_all)
