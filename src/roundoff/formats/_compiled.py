"""Loops that Numba compiles, kept on the disk where it has a place for them.

What is on the disk saves time and decides nothing: a full disk, or one without a place, makes
every process compile anew; a change in any source of loops makes all of them anew.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba

__all__ = ["compiled", "compiled_for_threads"]


def compiled(function: Callable[..., Any]) -> Any:
    """Compile when first called; what is called must not touch Python's objects."""
    return _kept(function, nogil=True)


def compiled_for_threads(function: Callable[..., Any]) -> Any:
    """The same for a function whose `prange` is shared out; call it in `formats._numba.threads`."""
    return _kept(function, nogil=True, parallel=True)


def _kept(function: Callable[..., Any], **options: bool) -> Any:
    njit: Any = numba.njit
    try:
        made = njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to write the cache to
        return njit(**options)(function)
    disk = getattr(made, "_cache", None)
    file = getattr(disk, "_cache_file", None)
    if file is not None:
        _mend(disk, file)
    return made


def _mend(disk: Any, file: Any) -> None:
    """Make Numba's cache of one function do what the module says."""
    save = disk.save_overload
    sources = _sources()

    def try_to_save(*compiled: Any) -> None:
        # Sources that were edited after they were read may have been imported in between.
        if _digest() == sources:
            with contextlib.suppress(OSError):  # a full disk
                save(*compiled)

    def save_code_first(key: Any, code: Any) -> None:
        # Numba numbers the code of a function's signatures and writes its index before it: two
        # processes, or a disk that is full in between, could leave an index that points at
        # other code. A name for each key, and code before index, leave an index without it.
        name = hashlib.sha256(repr((file._source_stamp, key)).encode()).hexdigest()[:16]
        name = file._data_name_pattern.replace("{number:d}", name)
        file._save_data(name, code)
        file._save_index(file._load_index() | {key: name})

    # Numba looks at the function's own file alone, but its loops hold those that it calls.
    file._source_stamp = file._source_stamp, sources
    file.save, disk.save_overload = save_code_first, try_to_save


@cache
def _sources() -> str:
    """What the sources were when this process read them first."""
    return _digest()


def _digest() -> str:
    """The digest of all that compiled functions are made of: loops, and their constants."""
    room = Path(__file__).parents[1]
    loops = [p for part in ("formats", "operators") for p in (room / part).rglob("_[!_]*.py")]
    loops += [room / "operators" / "exponentials.py", room / "metrics" / "instructions.py"]
    digest = hashlib.sha256()
    for file in sorted((*loops, *(room / "metrics").glob("*_numba.py"))):
        digest.update(file.read_bytes())
    return digest.hexdigest()
