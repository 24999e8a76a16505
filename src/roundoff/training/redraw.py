"""The low bits of all weights, drawn anew for a moment and put back exactly.

An error that is steady only since the weights hardly move (their own rounding, at a low learning
rate) is another one at redrawn weights; a bias is the same. Bits are flipped where they
stand, so that no copy of the weights is needed, zero stays next to zero, and signs and
exponents stay as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable
from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["FEWEST", "KEPT", "redrawn"]

KEPT = 6
"""Upper mantissa bits that stay, at first: weights move by up to 2^-6 of themselves."""

FEWEST = 2
"""Upper mantissa bits that always stay."""

MANTISSA = {torch.float64: 52, torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}
INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}
CHUNK = 1 << 20  # elements whose new bits are drawn at once


@contextlib.contextmanager
def redrawn(weights: Iterable[Tensor], *, kept: int, seed: int) -> Generator[None]:
    """Redraw all mantissa bits of the weights below the upper `kept` until the block ends.

    Then they are again what they were, bit for bit. Autograd does not see it: no graph may
    be alive across either end of the block.

    >>> w = torch.tensor([1.0, -0.0])
    >>> with redrawn([w], kept=6, seed=0):
    ...     1.0 <= w[0].item() < 1 + 2**-6
    True
    >>> w.tolist()
    [1.0, -0.0]
    """
    parts = [part for w in weights if w.dtype in MANTISSA for part in _parts(w, kept)]
    flipped: list[int] = []
    try:
        for i, part in enumerate(parts):
            _flip(*part, seed=_mixed(seed, i))
            flipped.append(i)
        yield
    finally:  # an error or Ctrl-C half way through: what was flipped, and no more
        for i in flipped:
            _flip(*parts[i], seed=_mixed(seed, i))


def _mixed(seed: int, part: int) -> int:
    """Another seed for every part of every sample."""
    return (seed * 1_000_003 + part) % 2**63


def _parts(w: Tensor, kept: int) -> list[tuple[Tensor, int]]:
    """The bits of a weight in parts of a bounded size, each with the limit of what is flipped."""
    bits = w.data.view(INTEGERS[w.element_size()])
    limit = 1 << max(MANTISSA[w.dtype] - kept, 0)
    dense = bits.permute(sorted(range(bits.ndim), key=bits.stride, reverse=True))
    flat = dense.view(-1) if dense.is_contiguous() else dense
    parts: tuple[Tensor, ...] = cast(Any, flat).split(CHUNK)
    return [(part, limit) for part in parts]


def _flip(bits: Tensor, limit: int, *, seed: int) -> None:
    device = bits.device
    generator = torch.Generator(device).manual_seed(seed)
    bits ^= torch.randint(limit, bits.shape, generator=generator, device=device, dtype=bits.dtype)
