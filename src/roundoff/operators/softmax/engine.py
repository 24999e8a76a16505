"""The engine: runs any softmax `Recipe`, rounding at each of its sites.

x, y [R,N] rows of one block    P [R,K] one tile    m, l [R,1]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from roundoff.formats import Format
from roundoff.operators.arithmetic import divide, plain_arithmetic, put, row_sum
from roundoff.operators.exponentials import LOG2_E, exponential, singles
from roundoff.operators.softmax.recipe import Recipe
from roundoff.sites import Exponential, resolve

__all__ = ["Softmax", "soften"]

BLOCK = 2**21
HIDDEN = float("-inf")
BASE_E = Exponential()


@dataclass(frozen=True, slots=True)
class Softmax:
    """y [R,N], its log-sum-exp [R], and how often and how far (in powers of two) m rose."""

    y: Tensor
    lse: Tensor
    rescales: Tensor
    rescaled_by: Tensor


def soften(recipe: Recipe, x: Tensor, storage: Format) -> Softmax:
    """Softmax of the rows of `x` as `recipe` computes it.

    A row of -inf alone gives 0 and a log-sum-exp of -inf; NaN or +inf make their row NaN.
    """
    recipe = resolve(recipe, storage)
    wide = recipe.wide or x.dtype == torch.float64
    x = x.to(torch.float64 if wide else torch.float32)
    size = max(1, BLOCK // max(1, x.shape[-1]))
    with plain_arithmetic(x.device):
        parts = [_rows(recipe, x[at : at + size]) for at in range(0, max(1, len(x)), size)]
    return Softmax(
        torch.cat([p.y for p in parts]),
        torch.cat([p.lse for p in parts]),
        torch.cat([p.rescales for p in parts]),
        torch.cat([p.rescaled_by for p in parts]),
    )


def _rows(recipe: Recipe, x: Tensor) -> Softmax:
    column = x.new_zeros((len(x), 1))
    m, l, times, rises = torch.full_like(column, HIDDEN), column, column, column  # noqa: E741
    width = recipe.tile or max(1, x.shape[-1])
    tiles: list[Tensor] = list(torch.split(x, width, dim=-1)) if x.shape[-1] else []
    total = recipe.row_sum
    for tile in tiles:
        before = m
        m = put(torch.maximum(m, tile.amax(-1, keepdim=True)), recipe.maximum)
        added = row_sum(_probabilities(recipe, tile, m), total)
        factor = put(singles(before - _shift(m), BASE_E), recipe.factor)
        l = put(put(l * factor, total.format) + added, total.format)  # noqa: E741
        risen = (m > before) & before.isfinite()
        times = times + risen
        rises = rises + ((m - before) * LOG2_E).where(risen, torch.zeros_like(m))
    how = recipe.normalise
    parts = [divide(_probabilities(recipe, t, m), l, how.by, how.format) for t in tiles]
    y = put(torch.cat(parts, -1), recipe.output) if parts else x
    lse = (m + l.log()).masked_fill(l == 0, HIDDEN)
    return Softmax(y, lse.squeeze(-1), times.squeeze(-1), rises.squeeze(-1))


def _shift(m: Tensor) -> Tensor:
    return m.masked_fill(m == HIDDEN, 0.0)


def _probabilities(recipe: Recipe, x: Tensor, m: Tensor) -> Tensor:
    how = recipe.exponential
    argument = x - _shift(m)
    if how.base == "2":
        argument = argument * LOG2_E
    return put(exponential(put(argument, how.argument), how), how.format)
