"""The steps of attention on one tile of keys: scores, maximum, probabilities, normalisation.

B batch, H heads, R rows of one block, K keys of one tile
S [B,H,R,K] scores    P [B,H,R,K] exp(S - m)    m, l [B,H,R,1]
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from roundoff.formats import Format
from roundoff.operators.arithmetic import divide, matmul, put, settled
from roundoff.operators.attention.call import Call
from roundoff.operators.attention.operands import log2e_in_scale
from roundoff.operators.attention.recipe import Recipe
from roundoff.operators.exponentials import LOG2_E, exponential, fma, fma_rows, singles
from roundoff.sites import Quantizer

__all__ = [
    "HIDDEN",
    "Block",
    "State",
    "carried",
    "divided",
    "log_sum_exp",
    "new_maximum",
    "normalised",
    "probabilities",
    "rescaling",
    "scores",
]

HIDDEN = float("-inf")


@dataclass(frozen=True, slots=True)
class Block:
    """A block of query rows, and all that its output is computed from.

    Q [B,H,R,D] holds the block's rows, K [B,H,M,D] and V [B,H,M,Dv] all keys; `rows` are the
    numbers of the rows in the whole call.
    """

    recipe: Recipe
    call: Call
    q: Tensor
    k: Tensor
    v: Tensor
    rows: Tensor

    @property
    def waits(self) -> bool:
        """Whether the exponential applies the scale (or, with a bias, only its log2(e))."""
        return self.recipe.logits.scale in ("fma", "argument")

    @property
    def folds(self) -> bool:
        """Whether the scale waits for the exponential; a bias must be added to scaled S."""
        return self.waits and self.call.mask.kind != "additive"

    @property
    def base(self) -> float:
        """log2(e) where S carries it from its scaling on, and 1 elsewhere."""
        return 1.0 if self.waits else log2e_in_scale(self.recipe)

    @property
    def unit(self) -> float:
        """What one unit of S is in the exponent of e."""
        return self.call.scale if self.folds else 1.0 / self.base

    @property
    def exponent(self) -> float:
        """What one unit of S is in the exponent of the recipe's own base."""
        if self.recipe.exponential.base == "e":
            return self.unit
        return self.unit * LOG2_E if self.base == 1.0 else 1.0

    @property
    def waiting(self) -> float:
        """The factor that the exponential applies, where it waits."""
        return (self.call.scale if self.folds else 1.0) * log2e_in_scale(self.recipe)


@dataclass(slots=True)
class State:
    """What a block's rows have come to: m, l, and counts [B,H,R,1], and O [B,H,R,Dv].

    O is None before the first tile, whose product is not added to zeros.
    """

    m: Tensor
    l: Tensor  # noqa: E741 - the paper's letter
    O: Tensor | None  # noqa: E741
    rescales: Tensor
    rescaled_by: Tensor


def scores(block: Block, keys: slice) -> Tensor:
    """S of a tile as the maximum and the exponential see it, hidden keys at -inf."""
    recipe, call = block.recipe, block.call
    s = matmul(block.q, block.k[..., keys, :].transpose(-1, -2), recipe.qk)
    s = put(s, recipe.scores)
    factor = 1.0 if recipe.logits.scale == "before" else call.scale * block.base
    if recipe.logits.mask == "fma" and call.mask.kind == "additive":
        bias = call.mask.bias(s, block.rows, keys, unit=1.0 / block.base)
        return put(fma(s, carried(factor, s), bias), recipe.logits.format)
    if not block.folds and recipe.logits.scale != "before":
        s = put(s * factor, recipe.logits.format)
    s = call.mask.apply(s, block.rows, keys, call.lengths, unit=1.0 / block.base)
    return put(s, recipe.logits.format) if call.mask.kind == "additive" else s


def carried(factor: float, s: Tensor) -> float:
    """A factor as the kernel holds it: in the carrying dtype of S, not in Python's float64."""
    return torch.tensor(factor, dtype=s.dtype, device="cpu").item()


def new_maximum(block: Block, m: Tensor, s: Tensor) -> Tensor:
    """m after a tile, by the recipe's rule."""
    how = block.recipe.maximum
    if how.rule == "row":
        return m
    largest = s.amax(-1, keepdim=True)
    if how.rule == "tie-safe":
        largest = _above_ties(block, s, largest)
    if how.rule == "offset":
        largest = largest + how.threshold / (block.unit * LOG2_E)
    new = torch.maximum(m, largest)
    if how.rule == "lazy":
        rise = (largest - m) * (block.unit * LOG2_E)
        stays = (rise <= how.threshold) & (m != HIDDEN)
        new = torch.where(stays, m, new)
    return put(new, how.format)


def _above_ties(block: Block, s: Tensor, largest: Tensor) -> Tensor:
    """The shift of rows whose maximum is tied, capped so that no entry of P underflows."""
    cap = -0.5 * math.log(_smallest_weight(block.recipe)) / block.unit
    beta = block.recipe.maximum.beta
    raised = torch.where(largest > 0, largest * beta, torch.zeros_like(largest))
    tied = ((s == largest).sum(-1, keepdim=True) > 1) & largest.isfinite()
    return torch.where(tied, torch.minimum(raised, largest + cap), largest)


def _smallest_weight(recipe: Recipe) -> float:
    """The smallest P that keeps its precision at every site which it passes."""
    p, factor = recipe.probabilities, 1.0
    if isinstance(p, Quantizer):
        p, factor = p.element, p.factor
    sites = (recipe.exponential.format, recipe.row_sum.accumulator.format)
    normals = [settled(site).smallest_normal for site in sites]
    return max(2.0**-126, settled(p).smallest_normal / factor, *normals)


def rescaling(block: Block, before: Tensor, shift: Tensor) -> Tensor:
    """The factor exp(m_old - m) that takes l and O of earlier tiles to the new maximum."""
    exponent = (before - shift) * block.exponent
    return put(singles(exponent, block.recipe.exponential), block.recipe.maximum.factor)


def probabilities(block: Block, s: Tensor, shift: Tensor) -> Tensor:
    """P = exp(S - m), before it is cast for the product with V."""
    how = block.recipe.exponential
    if not block.waits:
        x = s - shift
    else:
        c = carried(block.waiting, s)
        fused = block.recipe.logits.scale == "fma"
        x = fma_rows(s, c, -(shift * c)) if fused else (s - shift) * c
    if how.base == "2" and how.log2e == "argument":
        x = x * LOG2_E
    return put(exponential(put(x, how.argument), how), how.format)


def normalised(block: Block, p: Tensor, s: Tensor, total: Tensor) -> Tensor:
    """P over l, for recipes that divide before the product with V."""
    recipe = block.recipe
    if recipe.row_sum.accumulator.order != "softmax":
        return divided(block, p, total)
    stored = _as_torch_stores_it(block, s)
    p = torch.softmax(stored, -1).to(s.dtype).masked_fill(total == 0, 0.0)
    return put(p, recipe.normalise.format)


def _as_torch_stores_it(block: Block, s: Tensor) -> Tensor:
    """S in the dtype in which torch.softmax reads S and writes P: each has its own order of sums.

    Where the recipe keeps S and P in two formats, that is the wider of them, so that no
    rounding happens that the recipe does not name.
    """
    recipe = block.recipe
    read = recipe.logits.format if block.call.mask.kind == "additive" else recipe.scores
    formats = read, recipe.probabilities
    wide = max(
        (f for f in formats if isinstance(f, Format)), key=lambda f: f.mantissa_bits, default=None
    )
    if wide is None or wide.dtype is None:
        return s
    return s.to(wide.dtype)


def divided(block: Block, x: Tensor, total: Tensor) -> Tensor:
    """x over l as the recipe divides, 0 where l is 0."""
    how = block.recipe.normalise
    return divide(x, total, how.by, how.format)


def log_sum_exp(block: Block, m: Tensor, total: Tensor) -> Tensor:
    """The LSE of rows with maximum m and sum l, -inf where l is 0."""
    return (m * block.unit + total.log()).masked_fill_(total == 0, HIDDEN)
