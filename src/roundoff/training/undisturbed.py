"""A block of code that leaves no trace in a model or in random states."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Generator
from typing import Any, cast

import numpy as np
import torch
from torch import nn

__all__ = ["undisturbed"]


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Generator[None]:
    """Put buffers and random states (torch, its devices, numpy, Python) back at the end.

    Casts that autocast keeps for later are dropped: their graphs belong to the block.

    >>> with undisturbed(torch.nn.Identity()):
    ...     a = torch.rand(1)
    >>> torch.equal(a, torch.rand(1))
    True
    """
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    states = np.random.get_state(), random.getstate()
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        with cast(Any, torch.random).fork_rng([d.index or 0 for d in devices]):
            yield
    finally:
        torch.clear_autocast_cache()
        np.random.set_state(states[0])
        random.setstate(states[1])
        for buffer, value in buffers:
            buffer.data.copy_(value)
