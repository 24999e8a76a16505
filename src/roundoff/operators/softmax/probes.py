"""Inputs of softmax that show what a kernel does, whatever the order of its sums."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from roundoff.formats import Format
from roundoff.operators.inputs import randn, stored
from roundoff.operators.protocol import Probe, Problem

__all__ = ["probes"]

ROWS = 256
APART = 16
"""Every so many columns the row's maximum comes again, so that l is nearly a whole number."""

Draw = Callable[[torch.Generator, int], Tensor]


def probes(format: Format, seed: int) -> tuple[Probe, ...]:
    """The probes for inputs of `format`."""
    deep = format.emin <= -126
    layouts: dict[str, tuple[str, tuple[str, ...], Draw]] = {
        "depths": ("tiny weights beside exact ones", ("exp",), _depths),
        "shallows": ("weights that fp16 holds beside exact ones", ("exp", "quotient"), _shallows),
        "stairs": ("columns that rise or fall along the row", ("sum", "exp"), _stairs),
        "counts": ("equal weights, as many as the row is long", ("sum", "quotient"), _counts),
        "normal": ("weights as they come", ("quotient", "sum"), _normal),
    }
    return tuple(
        Probe(
            name, doc, groups, tuple(partial(_problem, draw, n, format, seed) for n in (519, 512))
        )
        for name, (doc, groups, draw) in layouts.items()
        if deep or draw is not _depths
    )


def _problem(draw: Draw, n: int, format: Format, seed: int) -> Problem:
    x = draw(torch.Generator().manual_seed(seed), n)
    parameters = {"rows": len(x), "length": n, "inputs": "normal", "tile": None}
    return Problem({"x": stored(x, format)}, format, parameters)


def _uniform(generator: torch.Generator, n: int, low: float, high: float) -> Tensor:
    drawn = torch.rand((ROWS, n), dtype=torch.float64, device="cpu", generator=generator)
    return low + (high - low) * drawn


def _depths(generator: torch.Generator, n: int) -> Tensor:
    return _beside_ones(_uniform(generator, n, -86.0, -40.0))


def _shallows(generator: torch.Generator, n: int) -> Tensor:
    return _beside_ones(_uniform(generator, n, -8.0, -2.0))


def _beside_ones(x: Tensor) -> Tensor:
    x[:, ::APART] = 0.0
    return x


def _stairs(generator: torch.Generator, n: int) -> Tensor:
    along = torch.linspace(-8.0, 0.0, n, dtype=torch.float64)
    falling = (torch.arange(ROWS) % 2).bool()[:, None]
    return torch.where(falling, along.flip(0), along) + _uniform(generator, n, -0.3, 0.3)


def _counts(generator: torch.Generator, n: int) -> Tensor:
    seen = torch.randint(3, n, (ROWS, 1), device="cpu", generator=generator)
    hidden = torch.arange(n) >= seen
    levels = _uniform(generator, n, 0.0, 3.0).round()
    return torch.where(hidden, -9984.0, -0.5 * levels)


def _normal(generator: torch.Generator, n: int) -> Tensor:
    return randn((ROWS, n), generator)
