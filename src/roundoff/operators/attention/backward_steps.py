"""The steps of attention's gradients on one tile: P again, dS, and what is added to the sums.

n, m one tile's queries and keys    S, P, dP, dS [B,H,n,m]    D, LSE [B,H,n,1]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from roundoff.formats import Format
from roundoff.operators.arithmetic import matmul, put, row_sum
from roundoff.operators.attention.backward_recipe import Backward
from roundoff.operators.attention.operands import log2e_in_scale
from roundoff.operators.attention.recipe import Recipe
from roundoff.operators.attention.steps import (
    HIDDEN,
    Block,
    carried,
    new_maximum,
    normalised,
    probabilities,
    scores,
)
from roundoff.operators.exponentials import LOG2_E, exponential, fma_rows
from roundoff.sites import Accumulator

__all__ = [
    "Forward",
    "Work",
    "added",
    "finished",
    "gradient_of_scores",
    "left_of_scale",
    "normalised_weights",
    "recomputed_weights",
    "subtrahend",
]


@dataclass(frozen=True, slots=True)
class Forward:
    """What the forward pass leaves for the backward one: O as stored, O before that, and LSE."""

    stored: Tensor
    exact: Tensor
    lse: Tensor


@dataclass(frozen=True, slots=True)
class Work:
    """Everything that one pass over all tiles reads, in the carrying dtype, heads repeated."""

    how: Backward
    block: Block
    dout: Tensor
    forward: Forward
    tiles: tuple[slice, ...]
    factors: tuple[float, float]
    sums: tuple[Tensor, Tensor] | None = None  # dK and dV so far


def recomputed_weights(block: Block, keys: slice, lse: Tensor, how: Backward) -> Tensor:
    """P = exp(S - LSE) of a tile, 0 where a row sees no key."""
    of = block.recipe.exponential
    s, less = scores(block, keys), subtrahend(block, lse, how)
    if not block.waits:
        x = s - less
    else:
        c = carried(block.waiting, s)
        x = fma_rows(s, c, -less) if block.recipe.logits.scale == "fma" else s * c - less
    if of.base == "2" and of.log2e == "argument":
        x = x * LOG2_E
    return put(exponential(put(x, of.argument), of), of.format)


def subtrahend(block: Block, lse: Tensor, how: Backward) -> Tensor:
    """What LSE, as stored, takes from a row's scores: in their unit, or in the exponential's."""
    lse = put(lse.masked_fill(lse == HIDDEN, 0.0), how.lse)
    return lse * (log2e_in_scale(block.recipe) if block.waits else block.base)


def normalised_weights(block: Block, *, cast: bool) -> Tensor:
    """The normalised P of whole rows that the forward pass made, before or after its `cast`."""
    recipe, total = block.recipe, block.recipe.row_sum.accumulator
    s = scores(block, slice(0, block.k.shape[-2]))
    m = s.new_full((*s.shape[:-1], 1), HIDDEN)
    if recipe.maximum.rule == "row":
        m = put(s.amax(-1, keepdim=True), recipe.maximum.format)
    m = new_maximum(block, m, s)
    p = probabilities(block, s, m.masked_fill(m == HIDDEN, 0.0))
    summed = put(p, recipe.probabilities) if recipe.row_sum.adds == "after" else p
    sums = put(row_sum(summed, total.inner), total.format, mode=total.rounding)
    p = normalised(block, p, s, sums)
    return put(p, recipe.probabilities) if cast else p


def gradient_of_scores(
    how: Backward, p: Tensor, dp: Tensor, delta: Tensor | None, factor: float
) -> Tensor:
    """dS = P (dP - D) as it enters its two products; without D, as torch's softmax derives it."""
    if delta is None:
        ds = _as_torch_derives_it(how, p, dp)
    else:
        ds = put(p * put(dp - delta, how.difference), how.ds)
    return put(ds * factor, how.scaled.format) if how.scaled.at == "ds" else ds


def _as_torch_derives_it(how: Backward, p: Tensor, dp: Tensor) -> Tensor:
    """In the widest dtype in which the recipe keeps P, dP or dS: no rounding but the recipe's."""
    formats = how.probabilities, how.dp.format, how.ds
    wide = max((f for f in formats if isinstance(f, Format)), key=lambda f: f.mantissa_bits)
    dtype = wide.dtype or p.dtype
    aten: Any = torch
    ds: Tensor = aten._softmax_backward_data(dp.to(dtype), p.to(dtype), -1, dtype)
    return put(ds.to(p.dtype), how.ds)


def added(onto: Tensor | None, a: Tensor, b: Tensor, total: Accumulator, factor: float) -> Tensor:
    """`onto + factor * a @ b`, carried as `total` says.

    A `native` sum is one of torch's matrix products with alpha and beta; elsewhere the product
    is multiplied in a rounding of its own, if there is a factor.
    """
    if total.order == "native" and onto is not None:
        return _native(onto, a, b, total, factor)
    if factor == 1.0:
        return matmul(a, b, total, onto=onto)
    inner = total if onto is None else total.inner
    part = put(matmul(a, b, inner) * factor, inner.format, mode=total.rounding)
    return part if onto is None else put(onto + part, total.format, mode=total.rounding)


def _native(onto: Tensor, a: Tensor, b: Tensor, total: Accumulator, factor: float) -> Tensor:
    assert isinstance(total.format, Format)
    dtype = total.format.dtype or onto.dtype
    flat = [x.flatten(0, -3).to(dtype) for x in (onto, a, b)]
    summed = torch.baddbmm(flat[0], flat[1], flat[2], alpha=factor)
    return summed.view(onto.shape).to(onto.dtype)


def finished(how: Backward, x: Tensor, factor: float) -> Tensor:
    """A sum with the scale put on, where that comes last."""
    if how.scaled.at != "sums" or factor == 1.0:
        return x
    return put(x * factor, how.scaled.format)


def left_of_scale(recipe: Recipe, scale: float) -> tuple[float, float]:
    """What dQ = dS K and dK = dS^T Q are still to be multiplied by, Q and K as prepared."""
    log2e = log2e_in_scale(recipe)
    match recipe.prescale.operands:
        case "none":
            return scale, scale
        case "q":
            return scale, 1.0 / log2e
        case "k":
            return 1.0 / log2e, scale
        case "qk":
            root = math.sqrt(abs(scale))
            return math.copysign(root, scale) / math.sqrt(log2e), root / math.sqrt(log2e)
