"""Golden beyond float64: numbers of mpmath, and back to tensors without loss.

A value goes back as two float64: the nearest one, and what that rounding left out.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["as_numbers", "as_pair"]


def as_numbers(x: Tensor) -> list[Any]:
    """`x` as nested lists of Python floats, which mpmath takes exactly."""
    exact: Any = x.double()
    return exact.tolist()


def as_pair(mp: Any, rows: list[list[Any]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Equally long `rows` of mpmath's numbers as float64 [rows, columns], and the remainders.

    Their sum in mpmath has about twice float64's digits. The remainder of NaN and of an
    infinity is 0.

    >>> import mpmath
    >>> with mpmath.workdps(50):
    ...     high, low = as_pair(mpmath, [[mpmath.mpf(1) / 3]], torch.device("cpu"))
    >>> high.item() == 1 / 3, low.item() == 1 / 3 / 2**54
    (True, True)
    """
    high = [[float(value) for value in row] for row in rows]
    low = [[_remainder(mp, value) for value in row] for row in rows]
    return (
        torch.tensor(high, dtype=torch.float64, device=device),
        torch.tensor(low, dtype=torch.float64, device=device),
    )


def _remainder(mp: Any, value: Any) -> float:
    rest = float(value - mp.mpf(float(value)))
    return 0.0 if math.isnan(rest) else rest
