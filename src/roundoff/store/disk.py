"""What a run does to the disk: locks, whole lines, whole documents.

Every operation either happens entirely or raises a `RunError` and leaves what was
there; a crash at any moment leaves at most one line that has no end.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import os
import secrets
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

from roundoff.errors import RunError

__all__ = [
    "PRIVATE_PREFIX", "AppendFile", "check_writable", "disk_errors", "locked", "moment",
    "replace_file", "replacing", "try_lock",
]  # fmt: skip

PRIVATE_PREFIX = ".roundoff-"  # lock and temporary files; they make no folder a run
LOCK_SECONDS = 60.0  # how long to wait for another process's lock, held for milliseconds


def moment() -> str:
    """This moment in UTC, as a text that sorts by time and fits into a file's name."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%fZ")


@contextlib.contextmanager
def disk_errors(action: str, path: Path) -> Generator[None]:
    """Turn an OSError inside the block into a one-line `RunError`: "cannot `action` `path`"."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot {action} {path}: {error.strerror or error}") from error


def try_lock(fd: int) -> bool:
    """Take the exclusive flock of an open file, unless someone alive holds it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise RunError(
            f"cannot lock a file of the run: {error.strerror}; "
            f"put the run on a file system that has flock"
        ) from error
    return True


@contextlib.contextmanager
def locked(path: Path) -> Generator[None]:
    """Hold the exclusive lock `path`, which the kernel frees even after kill -9."""
    with disk_errors("lock", path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not try_lock(fd):
            if time.monotonic() > deadline:
                raise RunError(
                    f"another process has held {path} for {LOCK_SECONDS:.0f} s; "
                    f"look for a stopped process that works on this run"
                )
            time.sleep(0.002)
        yield
    finally:
        os.close(fd)


class AppendFile:
    """A file that one process appends whole lines, or records of another kind, to.

    Not for several threads. After an error the file ends where it ended before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with disk_errors("write", path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self.fd = os.open(path, flags, 0o666)
            _sync_folder(path.parent)

    def append(self, line: str, *, sync: bool = True) -> None:
        """Add `line` and a newline, on the disk when this returns (with `sync`)."""
        self.write((line + "\n").encode("ascii"), sync=sync)

    def write(self, data: bytes, *, sync: bool = True) -> None:
        """Add `data`, all or nothing; on the disk when this returns (with `sync`)."""
        with disk_errors("write", self.path):
            end = os.fstat(self.fd).st_size
            try:
                while data:  # a second turn only where the disk took part of the line
                    data = data[os.write(self.fd, data) :]
                if sync:
                    os.fsync(self.fd)
            except BaseException:  # a Ctrl-C too: raised means not written
                with contextlib.suppress(OSError):
                    os.ftruncate(self.fd, end)
                raise

    def close(self) -> None:
        """Close the file; twice does no harm."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


@contextlib.contextmanager
def replacing(path: Path) -> Generator[Path]:
    """A temporary place to write to, which is `path` once the block ends without an error.

    A reader sees the old file or the new one, whole.
    """
    temporary = path.with_name(f"{PRIVATE_PREFIX}{secrets.token_hex(4)}.tmp")
    with disk_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def replace_file(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the new one, whole."""
    with replacing(path) as temporary, temporary.open("x", encoding="ascii") as file:
        file.write(text)


def check_writable(path: Path, *, folder: bool = False) -> None:
    """Raise, before any work, the `RunError` that writing `path` would end in; leave nothing.

    `folder` says that `path` is to be a folder, with files in it.
    """
    place = path if folder else path.parent
    with disk_errors("write", path):
        if not folder and path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        made = [p for p in (place, *place.parents) if not p.exists()]
        try:
            place.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=place).close()
        finally:
            for empty in made:
                with contextlib.suppress(OSError):
                    empty.rmdir()


def _sync_folder(folder: Path) -> None:
    """Make a new name in `folder` survive a power cut, where the file system can."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse
            os.fsync(fd)
    finally:
        os.close(fd)
