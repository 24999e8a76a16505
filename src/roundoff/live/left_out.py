"""What a source leaves out of its kind, because it cannot be read: said by name, once."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import Tensor

from roundoff.errors import in_one_line

__all__ = ["LeftOut", "outermost", "some"]

_LOG = logging.getLogger("roundoff")


class LeftOut:
    """Of one kind, names and why they are left out. What fails with all else is no exception."""

    def __init__(self, of: str) -> None:
        self._of = of
        self._known: set[str] = set()
        self._fresh: dict[str, str] = {}
        self._errors: list[Exception] = []

    def put(self, name: str, why: str) -> None:
        """Leave it out."""
        if name not in self._known:
            self._known.add(name)
            self._fresh[name] = why

    def failed(self, name: str, error: Exception, tensor: Tensor | None = None) -> None:
        """Leave out what could not be read."""
        if tensor is not None and tensor.is_complex():
            self.put(name, "complex")
        elif tensor is not None and tensor.layout is not torch.strided:
            self.put(name, "sparse")
        else:
            self.put(name, in_one_line(error))
            self._errors.append(error)

    def say(self, *, read: bool) -> None:
        """One warning for each reason that is new; the error, where nothing was `read` for it."""
        errors, self._errors = self._errors, []
        fresh, self._fresh = self._fresh, {}
        if errors and not read:
            raise errors[0]
        for why in dict.fromkeys(fresh.values()):
            names = outermost(name for name, reason in fresh.items() if reason == why)
            _LOG.warning("monitor: %s: left out %s (%s)", self._of, some(names), why)


def outermost(names: Iterable[str]) -> list[str]:
    """Of names of modules those that lie in no other of them.

    >>> outermost(["layers.1", "layers.1.fc", "layers.10"])
    ['layers.1', 'layers.10']
    """
    found: list[str] = []
    for name in names:  # what lies in a module comes behind it
        if not any(name.startswith(outer + ".") for outer in found[-1:]):
            found.append(name)
    return found


def some(names: Iterable[str], most: int = 3) -> str:
    """The first of many names.

    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    every = [*names]
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return ", ".join(every[:most]) + more
