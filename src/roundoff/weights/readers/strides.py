"""Where the elements of a tensor lie in its storage, which need not be in their order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["in_order", "last_place", "places"]


def places(shape: Sequence[int], stride: Sequence[int], start: int, stop: int) -> Tensor:
    """From the first element on, the places of elements start to stop in row-major order.

    >>> places((2, 3), (1, 2), 1, 5).tolist()
    [2, 4, 1, 3]
    """
    at, found = torch.arange(start, stop), torch.zeros(stop - start, dtype=torch.int64)
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        found += (at % size) * step
        at //= size
    return found


def last_place(shape: Sequence[int], stride: Sequence[int]) -> int:
    """The place of the last element of a tensor that has any.

    >>> last_place((2, 3), (1, 2)), last_place((), ())
    (5, 0)
    """
    return sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def in_order(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether all elements lie side by side in row-major order.

    >>> in_order((2, 3), (3, 1)), in_order((2, 3), (1, 2)), in_order((1, 3), (7, 1))
    (True, False, True)
    """
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True
