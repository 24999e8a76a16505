"""The engine: runs any attention `Recipe`, rounding at each of its sites.

    B batch, H heads, N queries, R rows of one block, K keys of one tile, D, Dv head dims
    S [B,H,R,K] scores    P [B,H,R,K] exp(S - m)    m, l [B,H,R,1]    O [B,H,R,Dv]

Rows do not meet in the forward pass, so they are taken a block at a time (to stay in the
cache) and only where asked for. There is no branch on a kernel's name: what differs
between kernels is in the recipe.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from roundoff.errors import UnsupportedError
from roundoff.formats import Format, to_dtype
from roundoff.operators.arithmetic import matmul, plain_arithmetic, put, row_sum
from roundoff.operators.attention.call import Attention, Call
from roundoff.operators.attention.exponentials import LOG2_E, exponential, fma
from roundoff.operators.attention.operands import prepare
from roundoff.operators.attention.recipe import Recipe, Tile

__all__ = ["attend"]

BLOCK = 2**21
"""Scores held at a time; a block of this many float32 fits a core's share of the cache."""


@dataclass(slots=True)
class _State:
    m: Tensor
    l: Tensor  # noqa: E741 - the paper's letter
    O: Tensor  # noqa: E741
    rescales: Tensor
    rescaled_by: Tensor


def attend(recipe: Recipe, call: Call, storage: Format) -> Attention:
    """Attention of `call.rows` as `recipe` computes it, in the carrying dtype of its inputs."""
    head_dim = call.q.shape[-1]
    recipe = recipe.resolved(storage, head_dim=head_dim, causal=call.mask.causal)
    _check(recipe)
    with plain_arithmetic(call.q.device):
        q, k, v = prepare(recipe, call)
        parts = [
            _attend_rows(recipe, q[..., at, :], k, v, call, call.rows[at])
            for at in _row_blocks(q, k, cast(Tile, recipe.tile))
        ]
        return Attention(
            torch.cat([p.out for p in parts], -2),
            torch.cat([p.lse for p in parts], -1),
            torch.cat([cast(Tensor, p.rescales) for p in parts], -1),
            torch.cat([cast(Tensor, p.rescaled_by) for p in parts], -1),
        )


def _check(recipe: Recipe) -> None:
    tile = cast(Tile, recipe.tile)
    if recipe.row_sum.accumulator.order == "softmax" and (
        tile.keys is not None or recipe.exponential.approximation != "exact"
    ):
        raise UnsupportedError(
            f"recipe {recipe.name!r}: torch.softmax sums whole rows of exact exponentials; "
            "choose another order of the row sum for tiles or polynomials"
        )


def _row_blocks(q: Tensor, k: Tensor, tile: Tile) -> Iterator[slice]:
    """Equal blocks of rows: a GEMM with a handful of rows may sum in another order."""
    rows = q.shape[-2]
    width = max(1, min(k.shape[-2], tile.keys or k.shape[-2]))
    most = max(64, BLOCK // (width * q.shape[0] * q.shape[1]))
    size = max(1, math.ceil(rows / max(1, math.ceil(rows / most))))
    for start in range(0, max(rows, 1), size):
        yield slice(start, min(start + size, rows))


def _attend_rows(
    recipe: Recipe, q: Tensor, k: Tensor, v: Tensor, call: Call, rows: Tensor
) -> Attention:
    tile = cast(Tile, recipe.tile)
    kv_len = k.shape[-2]
    stretch = max(1, math.ceil(kv_len / tile.splits))
    parts: list[Attention] = []
    for begin in range(0, max(kv_len, 1), stretch):
        tiles = _tiles(begin, min(begin + stretch, kv_len), tile)
        state = _start(recipe, q, k, v, call, rows, tiles)
        for keys in tiles:
            s = _scores(recipe, q, k, call, rows, keys)
            _step(recipe, state, s, v[..., keys, :], call)
        parts.append(_finish(recipe, state, call))
    joined = parts[0] if len(parts) == 1 else _combine(parts)
    return Attention(
        put(joined.out, cast(Format, recipe.output)), joined.lse, joined.rescales, joined.rescaled_by
    )


def _tiles(begin: int, end: int, tile: Tile) -> list[slice]:
    width = tile.keys or max(1, end - begin)
    tiles = [slice(at, min(at + width, end)) for at in range(begin, end, width)]
    return tiles[::-1] if tile.direction == "backward" else tiles


def _start(
    recipe: Recipe, q: Tensor, k: Tensor, v: Tensor, call: Call, rows: Tensor, tiles: list[slice]
) -> _State:
    column = q.new_zeros((*q.shape[:-1], 1))
    m = torch.full_like(column, float("-inf"))
    if recipe.maximum.rule == "row":
        for keys in tiles:
            m = torch.maximum(m, _scores(recipe, q, k, call, rows, keys).amax(-1, keepdim=True))
        m = put(m, cast(Format, recipe.maximum.format))
    output = q.new_zeros((*q.shape[:-1], v.shape[-1]))
    return _State(m, column, output, torch.zeros_like(column), torch.zeros_like(column))


def _scores(
    recipe: Recipe, q: Tensor, k: Tensor, call: Call, rows: Tensor, keys: slice
) -> Tensor:
    s = put(matmul(q, k[..., keys, :].transpose(-1, -2), recipe.qk), cast(Format, recipe.scores))
    form = cast(Format, recipe.logits.format)
    if recipe.logits.scale == "after" or _adds_bias(recipe, call):
        s = put(s * call.scale, form)
    s = call.mask.apply(s, rows, keys, call.lengths)
    return put(s, form) if call.mask.kind == "additive" else s


def _adds_bias(recipe: Recipe, call: Call) -> bool:
    """Whether an added mask forces a scale that the recipe would fold into exp's FMA."""
    return recipe.logits.scale == "fma" and call.mask.kind == "additive"


def _unit(recipe: Recipe, call: Call) -> float:
    """What one unit of S is in the exponent of e: the scale where S is still unscaled."""
    return call.scale if recipe.logits.scale == "fma" and not _adds_bias(recipe, call) else 1.0


def _step(recipe: Recipe, state: _State, s: Tensor, v: Tensor, call: Call) -> None:
    """Take one tile in: m, l, O of the rows before it become those after it."""
    unit = _unit(recipe, call)
    m = _new_maximum(recipe, state.m, s, unit)
    shift = m.masked_fill(m == float("-inf"), 0.0)
    factor = put(
        _exp_difference(recipe, state.m, shift, unit), cast(Format, recipe.maximum.factor)
    )
    _count(state, m, unit)
    p = _probabilities(recipe, s, shift, unit)
    cast_p = p if recipe.normalise.when == "block" else put(p, _element(recipe))
    total = recipe.row_sum.accumulator
    added = row_sum(cast_p if recipe.row_sum.adds == "after" else p, total)
    old = put(state.l * factor, cast(Format, total.format))
    state.l = put(old + added, cast(Format, total.format))
    if recipe.normalise.when == "block":
        cast_p = put(_normalised(recipe, p, s, state.l), _element(recipe))
        factor = _divided(recipe, old, state.l)
    state.O = put(state.O * factor, cast(Format, recipe.pv.format))
    state.O = matmul(cast_p, v, recipe.pv, onto=state.O)
    state.m = m


def _element(recipe: Recipe) -> Format:
    return cast(Format, recipe.probabilities)


def _new_maximum(recipe: Recipe, m: Tensor, s: Tensor, unit: float) -> Tensor:
    how = recipe.maximum
    if how.rule == "row":
        return m
    largest = s.amax(-1, keepdim=True) if s.shape[-1] else torch.full_like(m, float("-inf"))
    if how.rule == "tie-safe":
        largest = _above_ties(recipe, s, largest, unit)
    new = torch.maximum(m, largest)
    if how.rule == "lazy":
        rise = (largest - m) * (unit * LOG2_E)
        new = torch.where(rise > how.threshold, largest, m).where(m != float("-inf"), largest)
    return put(new, cast(Format, how.format))


def _above_ties(recipe: Recipe, s: Tensor, largest: Tensor, unit: float) -> Tensor:
    """The shift of rows whose maximum is tied, capped so that exp does not underflow."""
    element = _element(recipe)
    cap = -0.5 * math.log(getattr(element, "smallest_normal", 2.0**-126)) / unit
    raised = torch.where(largest > 0, largest * recipe.maximum.beta, torch.zeros_like(largest))
    tied = ((s == largest).sum(-1, keepdim=True) > 1) & largest.isfinite()
    return torch.where(tied, torch.minimum(raised, largest + cap), largest)


def _exp_difference(recipe: Recipe, m: Tensor, shift: Tensor, unit: float) -> Tensor:
    difference = m - shift
    if recipe.exponential.base == "2":
        return torch.exp2(difference * (unit * LOG2_E))
    return torch.exp(difference * unit if unit != 1.0 else difference)


def _count(state: _State, m: Tensor, unit: float) -> None:
    rise = (m - state.m) * (unit * LOG2_E)
    risen = (m > state.m) & state.m.isfinite()
    state.rescales = state.rescales + risen
    state.rescaled_by = state.rescaled_by + rise.where(risen, torch.zeros_like(rise))


def _probabilities(recipe: Recipe, s: Tensor, shift: Tensor, unit: float) -> Tensor:
    how = recipe.exponential
    if recipe.logits.scale == "fma":
        # fma needs finite terms: -inf * c is -inf, which is what a hidden key must stay.
        c = torch.tensor(unit * LOG2_E if how.base == "2" else unit, dtype=s.dtype).item()
        x = fma(s, c, -(shift * c))
    elif how.base == "2":
        x = (s - shift) * LOG2_E
    else:
        x = s - shift
    return put(exponential(put(x, cast(Format, how.argument)), how), cast(Format, how.format))


def _normalised(recipe: Recipe, p: Tensor, s: Tensor, total: Tensor) -> Tensor:
    if recipe.row_sum.accumulator.order == "softmax":
        # torch.softmax sums a 16-bit tensor in another order than a float32 one.
        stored = to_dtype(s, cast(Format, recipe.scores))
        p = torch.softmax(stored, -1).to(s.dtype).masked_fill(total == 0, 0.0)
        return put(p, cast(Format, recipe.normalise.format))
    return _divided(recipe, p, total)


def _divided(recipe: Recipe, x: Tensor, total: Tensor) -> Tensor:
    form = cast(Format, recipe.normalise.format)
    if recipe.normalise.by == "reciprocal":
        quotient = x * put(1.0 / total, form)
    else:
        quotient = x / total
    return put(quotient, form).masked_fill(total == 0, 0.0)


def _finish(recipe: Recipe, state: _State, call: Call) -> Attention:
    out = state.O
    if recipe.normalise.when == "end":
        out = _divided(recipe, out, state.l)
    lse = state.m * _unit(recipe, call) + state.l.log()
    lse = lse.masked_fill(state.l == 0, float("-inf"))
    return Attention(
        out, lse.squeeze(-1), state.rescales.squeeze(-1), state.rescaled_by.squeeze(-1)
    )


def _combine(parts: list[Attention]) -> Attention:
    """Join split keys: each stretch's output weighs exp(its LSE - the joint LSE)."""
    lse = torch.logsumexp(torch.stack([p.lse for p in parts]), 0)
    safe = lse.masked_fill(lse == float("-inf"), 0.0)
    weights = [(p.lse - safe).exp().unsqueeze(-1) for p in parts]
    out = torch.stack([p.out * w for p, w in zip(parts, weights, strict=True)]).sum(0)
    rescales = torch.stack([cast(Tensor, p.rescales) for p in parts]).sum(0)
    rescaled_by = torch.stack([cast(Tensor, p.rescaled_by) for p in parts]).sum(0)
    return Attention(out, lse, rescales, rescaled_by)
