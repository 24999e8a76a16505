"""One seed of an ablation: all that is run on it, before anything is averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from roundoff.attribution.coalitions import ERROR, Coalitions, figures
from roundoff.attribution.shapley import Steps, antithetic, exact, is_small, steps
from roundoff.errors import KernelError
from roundoff.operators.protocol import Outputs, Problem
from roundoff.subjects import KernelSubject

__all__ = ["Against", "Measured", "against", "kernel_outputs", "measured", "visits"]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Against:
    """A kernel on the same problem: its own figures, and the recipe's against it."""

    figures: Mapping[str, Array]
    apart: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Measured:
    """Values [outputs, 2] of one seed; `draws` are the Shapley values of each pair of orders."""

    own: Array
    everyone: Array
    nobody: Array
    draws: tuple[Steps, ...]
    alone: Steps
    restored: Steps
    left: Steps
    pairs: Mapping[tuple[str, str], Array]
    against: Against | None

    @property
    def shapley(self) -> Steps:
        """The mean over the draws."""
        return {
            site: np.mean([draw[site] for draw in self.draws], axis=0) for site in self.draws[0]
        }


def visits(active: int, permutations: int) -> int:
    """How often `measured` asks for a coalition, for a progress bar."""
    pairs = active * (active - 1) // 2
    shapley = active * 2**active if is_small(active, permutations) else 0
    return (shapley or permutations * (active + 1)) + 3 * active + pairs + 2


def measured(
    game: Coalitions, active: Sequence[str], permutations: int, seed: int, own: Array
) -> Measured:
    """Everything about one problem: Shapley values, single effects, and pairs."""
    everyone = frozenset(active)
    if is_small(len(active), permutations):
        draws = [exact(active, game)]
    else:
        orders = antithetic(active, max(1, permutations // 2), seed)
        walks = [steps(order, game) for order in orders]
        draws = [
            {site: (one[site] + other[site]) / 2 for site in active}
            for one, other in zip(walks[::2], walks[1::2], strict=True)
        ]
    nobody = game(frozenset())
    alone = {site: game(frozenset({site})) - nobody for site in active}
    pairs = {
        (a, b): game(frozenset({a, b})) - nobody - alone[a] - alone[b]
        for a, b in combinations(active, 2)
    }
    restored = {site: game(everyone) - game(everyone - {site}) for site in active}
    left = {site: game(frozenset(active[i + 1 :])) for i, site in enumerate(active)}
    return Measured(
        own, game(frozenset(game.players)), nobody, tuple(draws), alone, restored, left, pairs, None
    )


def kernel_outputs(kernel: KernelSubject, problem: Problem, golden: Outputs) -> Outputs:
    """What a kernel gives; `KernelError` where that is not finite and golden is."""
    found = kernel.run(problem, golden).outputs
    for name, x in found.items():
        if lost := int((~x.isfinite() & golden[name].isfinite()).sum()):
            raise KernelError(
                f"kernel {kernel.kernel.name!r} is broken: {lost} of {x.numel()} elements of "
                f"{name} are NaN or infinite where golden is finite; that is no error of rounding"
            )
    return found


def against(game: Coalitions, found: Outputs, recipe: Outputs) -> Against:
    """A kernel's outputs on the game's problem, which may lack some."""
    names = tuple(name for name in game.names if name in found)
    own = figures(game.golden, found, names)
    apart = figures(found, recipe, names)
    return Against(
        {name: own[i] for i, name in enumerate(names)},
        {name: float(apart[i, ERROR]) for i, name in enumerate(names)},
    )
