"""A block of code that leaves no trace in a model or in random states."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import torch
from torch import nn

from roundoff.state.random_states import undrawn

__all__ = ["undisturbed"]


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Generator[None]:
    """Put buffers, attributes and random states (torch's, numpy's, Python's) back at the end.

    A module's attributes are what they were, and a `torch.Generator` among them draws what it would
    have drawn; what such an attribute holds in turn (a list, a dictionary) is not looked into.
    Casts that autocast keeps for later are dropped: they belong to the block, or to other weights.

    >>> with undisturbed(torch.nn.Identity()):
    ...     a = torch.rand(1)
    >>> torch.equal(a, torch.rand(1))
    True
    """
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    tables = [t for m in model.modules() for t in (m.__dict__["_buffers"], m.__dict__)]
    entries = [(table, dict(table)) for table in tables]
    own = [v for table in tables for v in table.values() if isinstance(v, torch.Generator)]
    drawn = [(generator, generator.get_state()) for generator in own]
    torch.clear_autocast_cache()
    try:
        with undrawn():
            yield
    finally:
        torch.clear_autocast_cache()
        for generator, state in drawn:
            generator.set_state(state)
        for table, before in entries:
            _put_back(table, before)
        for buffer, value in buffers:
            buffer.data.copy_(value)


def _put_back(table: dict[str, Any], before: dict[str, Any]) -> None:
    for name in table.keys() - before.keys():
        del table[name]
    for name, value in before.items():
        if table.get(name) is not value:
            table[name] = value
