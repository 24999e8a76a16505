"""Every error that roundoff raises on purpose, in one tree::

    RoundoffError               anything below; the command exits with 2
    ├── UsageError              an argument that cannot be right
    │   └── UnknownNameError    a name that is not registered (suggests near ones)
    ├── MissingLibraryError     an optional library is not installed
    ├── UnsupportedError        a kernel or format cannot do what was asked
    ├── KernelError             a kernel broke its contract (shape, dtype, wrong back-end ran)
    ├── CandidateError          a candidate failed in somebody's training, which is as it was
    ├── GoldenError             golden cannot judge this candidate
    ├── RunError                a run directory that cannot be read or written
    ├── CheckpointError         a checkpoint that cannot be read
    └── CellError               one cell failed; the others go on
        └── WorkerDiedError     ... by taking its process along, or by hanging


A message names the value, what was expected, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CandidateError",
    "CellError",
    "CheckpointError",
    "GoldenError",
    "KernelError",
    "MissingLibraryError",
    "RoundoffError",
    "RunError",
    "UnknownNameError",
    "UnsupportedError",
    "UsageError",
    "WorkerDiedError",
    "in_one_line",
    "told",
]


class RoundoffError(Exception):
    """Base of all errors that roundoff raises on purpose."""


class UsageError(RoundoffError):
    """An argument that cannot be right."""


class UnknownNameError(UsageError):
    """A name that is not registered; the message suggests near ones.

    >>> raise UnknownNameError("format", "bf15", ["bf16", "fp16", "fp32"])
    Traceback (most recent call last):
    ...
    roundoff.errors.UnknownNameError: unknown format 'bf15'; did you mean 'bf16'?
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(set(known))
        near = difflib.get_close_matches(name, self.known, n=3, cutoff=0.6)
        hint = (
            f"did you mean {' or '.join(map(repr, near))}?"
            if near
            else f"known: {', '.join(self.known)}"
        )
        super().__init__(f"unknown {kind} {name!r}; {hint}")

    def __reduce__(self) -> tuple[type[UnknownNameError], tuple[str, str, list[str]]]:
        return type(self), (self.kind, self.name, self.known)


class MissingLibraryError(RoundoffError):
    """An optional library is not installed; the message says which extra brings it."""

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        self.args_ = (library, extra, purpose)
        super().__init__(
            f"{purpose} needs {library}, which is not installed; "
            f"install it with: pip install 'roundoff[{extra}]'"
        )

    def __reduce__(self) -> tuple[type[MissingLibraryError], tuple[str, str, str]]:
        return type(self), self.args_


class UnsupportedError(RoundoffError):
    """A kernel or a format cannot do what was asked."""


class KernelError(RoundoffError):
    """A kernel broke its contract: shape, dtype, or another back-end ran."""


class CandidateError(RoundoffError):
    """A candidate failed in the middle of somebody's training, which is left as it was."""


class GoldenError(RoundoffError):
    """Golden is not accurate enough to judge this candidate."""


class RunError(RoundoffError):
    """A run directory that cannot be read or written."""


class CheckpointError(RoundoffError):
    """A checkpoint that cannot be read: damaged, of no known format, or not to be trusted."""


class CellError(RoundoffError):
    """One cell failed; the others go on."""


class WorkerDiedError(CellError):
    """The worker of a cell died or hung."""


def in_one_line(error: BaseException) -> str:
    """What somebody else's code raised: the type, and the first line of what it says.

    >>> in_one_line(ValueError("too long\\nby far")), in_one_line(KeyboardInterrupt())
    ('ValueError: too long', 'KeyboardInterrupt')
    """
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def told(error: Exception) -> str:
    """What went wrong: what roundoff says of it, or `in_one_line` of somebody else's error.

    >>> told(UsageError("steps is 0")), told(ValueError("too long"))
    ('steps is 0', 'ValueError: too long')
    """
    return str(error) if isinstance(error, RoundoffError) else in_one_line(error)
