"""One problem under coalitions of rounding sites: squared error and gain of every output.

A coalition names the sites that round as the recipe says; all others are exact. The carrier
is float64 in every coalition: in float32 each operation rounds once more wherever no site is
wider than fp32, so that restoring one site would take all those roundings away with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from roundoff.attribution.shapley import Coalition
from roundoff.errors import UnsupportedError
from roundoff.metrics import cluster_sums
from roundoff.operators.protocol import Operator, Outputs, Problem
from roundoff.sites import Choice, Site

__all__ = ["ERROR", "GAIN", "Coalitions", "can_round", "exact_choice", "figures", "widened"]

ERROR, GAIN = 0, 1
"""The columns of a value, which has a row for each output: sum e^2, and <e, g> / <g, g>."""
Array = NDArray[np.float64]


def exact_choice(site: Site) -> Choice:
    """The choice that takes the site's rounding away."""
    return site.alternatives[0]


def can_round(site: Site) -> bool:
    """Whether the site has an exact choice, and another one is in force."""
    return bool(site.alternatives) and site.choice != exact_choice(site)


def widened(problem: Problem) -> Problem:
    """The same values in float64, which makes float64 the carrier of every recipe."""
    inputs = {n: x.double() if x.is_floating_point() else x for n, x in problem.inputs.items()}
    return replace(problem, inputs=inputs)


def figures(golden: Outputs, found: Outputs, names: tuple[str, ...]) -> Array:
    """sum e^2 and the gain <e, g> / <g, g> of each output, [outputs, 2]."""
    lines: list[tuple[float, float]] = []
    for name in names:
        sums = cluster_sums(golden[name], found[name], cluster_dims=0)
        gg = sums.gg.item()
        lines.append((sums.ee.item(), sums.eg.item() / gg if gg else 0.0))
    return np.array(lines, dtype=np.float64)


@dataclass(slots=True)
class Coalitions:
    """The game on one problem: its players are the sites that can round. Values are kept."""

    operator: Operator
    recipe: Any
    problem: Problem
    golden: Outputs
    names: tuple[str, ...]
    tell: Callable[[], None] = lambda: None
    _known: dict[Coalition, Array] = field(default_factory=dict[Coalition, Array])
    _whole: dict[bool, Outputs] = field(default_factory=dict[bool, Outputs])

    @property
    def players(self) -> tuple[str, ...]:
        """The sites that can round, in the order of the data."""
        return tuple(site.name for site in self.recipe.sites() if can_round(site))

    def __call__(self, coalition: Coalition) -> Array:
        """sum e^2 and gain of each output where only `coalition` rounds, [outputs, 2]."""
        if coalition not in self._known:
            self._known[coalition] = self.values(self._outputs(coalition))
        self.tell()
        return self._known[coalition]

    @property
    def known(self) -> Mapping[Coalition, Array]:
        """The coalitions that were run, with their values."""
        return self._known

    def is_idle(self, site: str) -> bool:
        """Whether the site changes no bit alone, neither among all others nor among none."""
        everyone = frozenset(self.players)
        return all(
            self._same(coalition, among)
            for among, coalition in ((True, everyone - {site}), (False, frozenset({site})))
        )

    def _same(self, coalition: Coalition, among: bool) -> bool:
        """Whether the outputs are those of the full recipe (`among`) or of the exact one."""
        if among not in self._whole:
            self._whole[among] = self._outputs(frozenset(self.players if among else ()))
        found, whole = self._outputs(coalition), self._whole[among]
        self._known[coalition] = self.values(found)
        self.tell()
        return all(torch.equal(found[name], whole[name]) for name in self.names)

    def _outputs(self, coalition: Coalition) -> Outputs:
        restored: Mapping[str, Choice] = {
            site.name: exact_choice(site)
            for site in self.recipe.sites()
            if can_round(site) and site.name not in coalition
        }
        outputs, _ = self.operator.run(self.recipe.choose(restored), widened(self.problem))
        return outputs

    def values(self, found: Outputs) -> Array:
        """sum e^2 and gain of outputs of the recipe; `UnsupportedError` if they are not finite."""
        missing = [name for name in self.names if name not in found]
        if missing:
            raise UnsupportedError(f"recipe {self.recipe.name!r} gives no {', '.join(missing)}")
        values = figures(self.golden, found, self.names)
        if not np.isfinite(values).all():
            raise UnsupportedError(
                f"recipe {self.recipe.name!r} gives NaN or infinities on these inputs, or does so "
                "with some of its sites exact: there is no squared error to share out"
            )
        return values
