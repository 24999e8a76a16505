"""What operators share whose rows do not meet: sampling outputs, and recipes built from sites."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from roundoff.operators.protocol import Outputs, Problem
from roundoff.sites import Sited, deciding_fields, reordered

__all__ = ["Rowwise", "rescale_probes"]

R = TypeVar("R", bound=Sited)


class Rowwise:
    """The part of an `Operator` that follows from which axis of each output counts its rows.

    An output without such an axis is whole whatever rows are sampled.
    """

    row_axes: ClassVar[Mapping[str, int]]

    def reordered(self, recipe: R) -> R:
        """The same recipe with every sum from last to first."""
        return reordered(recipe)

    def fields(self, recipe: Sited) -> dict[str, Any]:
        """What decides the recipe's numbers."""
        return deciding_fields(recipe)

    def take_rows(self, outputs: Outputs, problem: Problem) -> Outputs:
        """The problem's rows of whole outputs."""
        if problem.rows is None:
            return outputs
        return {
            n: x.index_select(self.row_axes[n], problem.rows) if n in self.row_axes else x
            for n, x in outputs.items()
        }


def rescale_probes(rescales: Tensor, rescaled_by: Tensor) -> dict[str, float]:
    """How often a row's maximum rose after its first tile, and how far: means over rows."""
    return {
        "rescales": rescales.double().mean().item(),
        "rescaled_by": rescaled_by.double().mean().item(),
    }
