"""Names: one table per kind of thing, with near matches for unknown names.

A `Registry` maps a name to a value or to a place (`"module:attribute"`) that is
imported when the value is first asked for, so that listing names costs nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, Generic, TypeVar

from roundoff.errors import MissingLibraryError, UnknownNameError, UsageError

T = TypeVar("T")

__all__ = ["Registry", "compiled_loops", "is_installed", "lazily", "load", "require"]


class Registry(Mapping[str, T], Generic[T]):
    """Named values of one kind; iterates in the order of registration.

    >>> sizes = Registry[int]("size")
    >>> sizes.add("small", 1)
    1
    >>> sizes["smal"]
    Traceback (most recent call last):
    ...
    roundoff.errors.UnknownNameError: unknown size 'smal'; did you mean 'small'?
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._values: dict[str, T] = {}
        self._places: dict[str, str] = {}

    def add(self, name: str, value: T) -> T:
        """Register `value` under `name`; a name is taken once."""
        self._take(name)
        self._values[name] = value
        return value

    def add_place(self, name: str, place: str) -> None:
        """Register what stands at `place` (`"module:attribute"`), imported on first use."""
        self._take(name)
        self._places[name] = place

    def _take(self, name: str) -> None:
        if name in self:
            raise UsageError(f"{self.kind} {name!r} is registered already")

    def __getitem__(self, name: str) -> T:
        if name not in self._values and name in self._places:
            self._values[name] = load(self._places[name])
        if name not in self._values:
            raise UnknownNameError(self.kind, name, self)
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        return name in self._values or name in self._places

    def __iter__(self) -> Iterator[str]:
        yield from self._places
        yield from (n for n in self._values if n not in self._places)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def load(place: str) -> Any:
    """Import what stands at `"module:attribute"`."""
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


def lazily(
    package: str, places: Mapping[str, str], names: list[str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose names are imported when first asked for.

    `places` maps a name to the module below `package` that holds it.
    """

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return load(f"{package}.{places[name]}:{name}")

    return get, lambda: names


def is_installed(library: str) -> bool:
    """Whether `library` can be imported, without importing it."""
    return importlib.util.find_spec(library) is not None


@cache
def compiled_loops(module: str) -> Any:
    """A module of compiled loops; None without Numba, which `roundoff.formats` reports once."""
    return importlib.import_module(module) if is_installed("numba") else None


def require(library: str, *, extra: str, purpose: str) -> Any:
    """Import an optional library, or say which extra installs it."""
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        if error.name != library.partition(".")[0]:
            raise
        raise MissingLibraryError(library, extra, purpose) from None
