"""Hooks that stay behind when the module that they are on is copied or pickled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

__all__ = ["Hook"]


class Hook:
    """Calls a function for the module that it was put on; in a copy or a pickle, it does nothing.

    What stands there is Python's own, so that a pickle of the model can be read without roundoff.

    >>> import copy
    >>> hook = Hook(lambda x: print("called with", x))
    >>> hook(1)
    called with 1
    >>> copy.deepcopy(hook)(1)
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        """What the function gives."""
        return self._call(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")  # takes anything, returns None
