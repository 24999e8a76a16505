"""The spy: which operators really ran, so that a back-end is proved and not assumed.

torch's profiler is the instrument: it sees composite operators (a dispatch mode shows the
math back-end only as its parts) and leaves compiled functions compiled (a dispatch mode makes
them eager, for good). It adds no operator and draws no random number.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from roundoff.errors import KernelError

__all__ = ["require_event", "spy"]

T = TypeVar("T")

_ALONE = threading.RLock()


def spy(function: Callable[[], T]) -> tuple[T, list[str]]:
    """Call `function`; return its result and the names of all events, each once, sorted.

    One call at a time in a process: two profilers side by side crash it. What other threads
    do meanwhile is not seen.

    >>> spy(lambda: torch.ones(2) + 1)[1]
    [..., 'aten::add', ...]
    """
    # The profiler's library writes a line to the terminal at each start and stop otherwise.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    profile: Any = torch.autograd.profiler.profile(use_kineto=False)
    with _ALONE, profile:
        result = function()
    events: list[Any] = list(profile.function_events or [])
    return result, sorted({str(event.name) for event in events})


def require_event(name: str, expected: tuple[str, ...], events: list[str]) -> list[str]:
    """The events among `events` that prove that kernel `name` ran, or a KernelError.

    An event may go on after a space, as the names of compiled graphs do.
    """
    proof = [e for e in events if any(e == x or e.startswith(f"{x} ") for x in expected)]
    if expected and not proof:
        ran = [e for e in events if "attention" in e or "softmax" in e or "Compiled" in e]
        raise KernelError(
            f"kernel {name!r} was asked for but did not run; expected {' or '.join(expected)}, "
            f"saw {', '.join(ran) or 'nothing of the kind'}"
        )
    return proof
