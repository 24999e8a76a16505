"""The low bits of all weights, drawn anew for a moment and put back exactly.

An error that is steady only since the weights hardly move (their own rounding, at a low learning
rate) is another one at redrawn weights; a bias is the same. Bits are flipped where they
stand, so that no copy of the weights is needed, zero stays next to zero, and signs and
exponents stay as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable

import torch
from torch import Tensor

__all__ = ["FEWEST", "KEPT", "redrawn"]

KEPT = 6
"""Upper mantissa bits that stay, at first: weights move by up to 2^-6 of themselves."""

FEWEST = 2
"""Upper mantissa bits that always stay."""

MANTISSA = {torch.float64: 52, torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}
INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


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
    weights = [w for w in weights if w.dtype in MANTISSA]
    _flip(weights, kept, seed)
    try:
        yield
    finally:
        _flip(weights, kept, seed)


def _flip(weights: list[Tensor], kept: int, seed: int) -> None:
    generators: dict[torch.device, torch.Generator] = {}
    for w in weights:
        bits = w.data.view(INTEGERS[w.element_size()])
        generator = generators.setdefault(w.device, torch.Generator(w.device).manual_seed(seed))
        limit = 1 << max(MANTISSA[w.dtype] - kept, 0)
        bits ^= torch.randint(
            limit, bits.shape, generator=generator, device=w.device, dtype=bits.dtype
        )
