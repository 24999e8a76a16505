"""The global random states: torch's (of the CPU and of every CUDA device), numpy's and Python's.

Whatever must not disturb them, or must draw the same numbers again, does it by these.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["RandomStates", "seeded", "undrawn"]


@dataclass(frozen=True, eq=False)
class RandomStates:
    """All of them at one moment; `cuda` has one for each device, none before CUDA is in use.

    >>> states = RandomStates.here()
    >>> drawn = torch.rand(2)
    >>> states.put_back()
    >>> torch.equal(torch.rand(2), drawn)
    True
    """

    torch: Tensor
    cuda: list[Tensor]
    numpy: Any
    python: Any

    @classmethod
    def here(cls) -> RandomStates:
        """What the next numbers of this process depend on."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return cls(torch.get_rng_state(), cuda, np.random.get_state(), random.getstate())

    def put_back(self) -> None:
        """Go on from here; devices that this machine lacks are passed over."""
        torch.set_rng_state(self.torch)
        if self.cuda and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(self.cuda[: torch.cuda.device_count()])
        np.random.set_state(self.numpy)
        random.setstate(self.python)


@contextlib.contextmanager
def undrawn() -> Generator[None]:
    """What is drawn in the block is, to all that comes after it, not drawn.

    >>> with undrawn():
    ...     a = torch.rand(1)
    >>> torch.equal(a, torch.rand(1))
    True
    """
    states = RandomStates.here()
    try:
        yield
    finally:
        states.put_back()


@contextlib.contextmanager
def seeded(seed: int) -> Generator[None]:
    """In the block all begin from `seed`; at its end they are as before.

    CUDA's count from the first block on that finds it in use.

    >>> with seeded(7):
    ...     a = torch.rand(1)
    >>> with seeded(7):
    ...     torch.equal(a, torch.rand(1))
    True
    """
    with undrawn():
        torch.default_generator.manual_seed(seed % 2**63)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(seed % 2**63)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield
