"""The engine: runs any attention `Recipe`, rounding at each of its sites.

    B batch, H heads, N queries, R rows of one block, K keys of one tile, D, Dv head dims
    S [B,H,R,K] scores    P [B,H,R,K] exp(S - m)    m, l [B,H,R,1]    O [B,H,R,Dv]

Rows do not meet in the forward pass, so they are taken a block at a time (to stay in the
cache) and only where asked for. There is no branch on a kernel's name: what differs
between kernels is in the recipe.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from roundoff.errors import UnsupportedError
from roundoff.formats import Format
from roundoff.operators.arithmetic import matmul, plain_arithmetic, put, row_sum
from roundoff.operators.attention import fused
from roundoff.operators.attention.call import Attention, Call
from roundoff.operators.attention.operands import prepare, smoothed_away
from roundoff.operators.attention.recipe import Recipe, Tile
from roundoff.operators.attention.steps import (
    Block,
    State,
    divided,
    log_sum_exp,
    new_maximum,
    normalised,
    probabilities,
    rescaling,
    scores,
)
from roundoff.operators.exponentials import LOG2_E
from roundoff.sites import Quantizer

__all__ = ["LEAST_ROWS", "attend"]

BLOCK = 2**21
"""Scores held at a time; a block of this many float32 fits a core's share of the cache."""

LEAST_ROWS = 16
"""A product with fewer rows takes its sums in another order, so few rows get company.

In float64 some CPUs also take the rows beyond the last multiple of it in another order.
"""


def attend(recipe: Recipe, call: Call, storage: Format) -> Attention:
    """Attention of `call.rows` as `recipe` computes it, in the carrying dtype of its inputs.

    `storage` is the format that the inputs were rounded to. A row that sees no key gives 0
    and a log-sum-exp of -inf, and so does an empty list of keys. NaN and infinities reach
    every row that reads them, hidden or not where 0 * inf does it. Raises `UnsupportedError`
    for a recipe that no kernel could follow on this call.
    """
    recipe = recipe.resolved(storage, head_dim=call.q.shape[-1], causal=call.mask.causal)
    _check(recipe, call)
    wanted = len(call.rows)
    wide = recipe.wide or call.q.dtype == torch.float64
    call = replace(call, rows=_enough(call.rows, call.lengths[0], wide=wide))
    with plain_arithmetic(call.q.device):
        q, k, v = prepare(recipe, call)
        whole = Block(recipe, call, q, k, v, call.rows)
        if fused.takes(recipe) and fused.fits(whole):
            parts = [fused.attend(whole, _tiles(_tile(recipe), 0, k.shape[-2]))]
        else:
            blocks = _row_blocks(call.rows, q, k, _tile(recipe))
            parts = [_attend_some(whole, at) for at in blocks]
        lse = _joined([p.lse for p in parts], -1)
        lse = lse + smoothed_away(recipe, call, lse)
        return Attention(
            _joined([p.out for p in parts], -2)[..., :wanted, :],
            lse[..., :wanted],
            _joined([p.rescales for p in parts], -1)[..., :wanted],
            _joined([p.rescaled_by for p in parts], -1)[..., :wanted],
        )


def _enough(rows: Tensor, q_len: int, *, wide: bool) -> Tensor:
    """Rows enough for a product: so sampled rows are, bit for bit, the rows of the whole call."""
    missing = -len(rows) % LEAST_ROWS if wide else min(LEAST_ROWS, q_len) - len(rows)
    return torch.cat([rows, rows[-1:].expand(missing)]) if len(rows) and missing > 0 else rows


def _joined(parts: list[Tensor] | list[Tensor | None], axis: int) -> Tensor:
    some = [x for x in parts if x is not None]
    return some[0] if len(some) == 1 else torch.cat(some, axis)


def _tile(recipe: Recipe) -> Tile:
    assert isinstance(recipe.tile, Tile), "resolve the recipe before running it"
    return recipe.tile


def _check(recipe: Recipe, call: Call) -> None:
    if recipe.logits.scale in ("fma", "argument") and not call.scale > 0:
        raise UnsupportedError(
            f"recipe {recipe.name!r} takes the maximum before the scale is applied, "
            f"so it needs a positive scale, not {call.scale}"
        )
    p = recipe.probabilities
    along_keys = isinstance(p, Quantizer) and (p.scale, p.axis, p.two_level) == ("line", -1, False)
    if isinstance(p, Quantizer) and p.scale not in ("none", "fixed") and not along_keys:
        raise UnsupportedError(
            f"recipe {recipe.name!r}: P exists only a tile at a time, so that its scale must be "
            f"'none', 'fixed' or a 'line' of keys (axis -1), not {p.scale!r}"
        )


def _row_blocks(at: Tensor, q: Tensor, k: Tensor, tile: Tile) -> Iterator[slice]:
    """Equal blocks of rows: a GEMM with a handful of rows may sum in another order.

    Where a tile of queries has its own order of keys, its rows `at` are a block.
    """
    rows = q.shape[-2]
    if tile.direction == "cut-first" and tile.queries and rows:
        owners = cast("list[int]", (at // tile.queries).tolist())  # pyright: ignore[reportUnknownMemberType]
        start = 0
        for _, members in itertools.groupby(owners):
            size = len(list(members))
            yield slice(start, start + size)
            start += size
        return
    width = max(1, min(k.shape[-2], tile.keys or k.shape[-2]))
    most = max(64, BLOCK // (width * max(1, q.shape[0] * q.shape[1])))
    size = max(1, math.ceil(rows / max(1, math.ceil(rows / most))))
    for start in range(0, max(rows, 1), size):
        yield slice(start, min(start + size, rows))


def _attend_some(whole: Block, at: slice) -> Attention:
    """A stretch of the rows, with others beside them where they are too few for a product."""
    count = at.stop - at.start
    wide = whole.q.dtype == torch.float64
    rows = torch.arange(at.start, at.stop, device=whole.q.device)
    here = _enough(rows, whole.call.lengths[0], wide=wide)
    some = at if len(here) == count else here
    found = _attend_rows(replace(whole, q=whole.q[..., some, :], rows=whole.rows[some]))
    if len(here) == count:
        return found
    lse, rescales, rescaled_by = (
        x[..., :count] if x is not None else None
        for x in (found.lse, found.rescales, found.rescaled_by)
    )
    return Attention(found.out[..., :count, :], cast("Tensor", lse), rescales, rescaled_by)


def _attend_rows(block: Block) -> Attention:
    kv_len, tile = block.k.shape[-2], _tile(block.recipe)
    stretch = max(1, math.ceil(kv_len / tile.splits))
    parts: list[Attention] = []
    for begin in range(0, max(kv_len, 1), stretch):
        tiles = _tiles(tile, begin, min(begin + stretch, kv_len))
        if tile.direction == "cut-first":
            tiles.sort(key=lambda keys: not _is_cut(block, keys))
        parts.append(_finish(block, _walk(block, tiles)))
    joined = parts[0] if len(parts) == 1 else _combine(parts)
    out = put(joined.out, block.recipe.output)
    return Attention(out, joined.lse, joined.rescales, joined.rescaled_by)


def _tiles(tile: Tile, begin: int, end: int) -> list[slice]:
    return tile.in_order(tile.cut(begin, end))


def _is_cut(block: Block, keys: slice) -> bool:
    """Whether some query of the block's tile does not see some key, or the tile is not whole."""
    tile, lengths = _tile(block.recipe), block.call.lengths
    queries = tile.queries or lengths[0]
    first = int(block.rows[0]) // queries * queries
    if first + queries > lengths[0] or keys.stop - keys.start < (tile.keys or 0):
        return True
    rows = torch.arange(first, first + queries, device=block.rows.device)
    return block.call.mask.hides(rows, keys, lengths)


def _walk(block: Block, tiles: list[slice]) -> State:
    state = _start(block, tiles)
    for keys in tiles:
        _step(block, state, scores(block, keys), block.v[..., keys, :])
    return state


def _start(block: Block, tiles: list[slice]) -> State:
    q, how = block.q, block.recipe.maximum
    column = q.new_zeros((*q.shape[:-1], 1))
    m = torch.full_like(column, float("-inf"))
    if how.rule == "row":
        for keys in tiles:
            m = torch.maximum(m, scores(block, keys).amax(-1, keepdim=True))
        m = put(m, how.format)
    return State(m, column, None, torch.zeros_like(column), torch.zeros_like(column))


def _step(block: Block, state: State, s: Tensor, v: Tensor) -> None:
    """Take one tile in: m, l, O of the rows before it become those after it."""
    recipe, total = block.recipe, block.recipe.row_sum.accumulator
    per_tile = recipe.normalise.when == "block"
    m = new_maximum(block, state.m, s)
    shift = m.masked_fill(m == float("-inf"), 0.0)
    factor = rescaling(block, state.m, shift)
    _count(state, m, block.unit)
    p = probabilities(block, s, shift)
    weights = p if per_tile else put(p, recipe.probabilities)
    old = put(state.l * factor, total.inner.format, mode=total.rounding)
    added = row_sum(weights if recipe.row_sum.adds == "after" else p, total.inner)
    state.l = put(old + added, total.format, mode=total.rounding)
    if per_tile:
        weights = put(normalised(block, p, s, state.l), recipe.probabilities)
        factor = divided(block, old, state.l)
    onto = state.O
    if onto is not None:
        onto = put(onto * factor, recipe.pv.inner.format, mode=recipe.pv.rounding)
    state.O = matmul(weights, v, recipe.pv, onto=onto)
    state.m = m


def _count(state: State, m: Tensor, unit: float) -> None:
    rise = (m - state.m) * (unit * LOG2_E)
    risen = (m > state.m) & state.m.isfinite()
    state.rescales = state.rescales + risen
    state.rescaled_by = state.rescaled_by + rise.where(risen, torch.zeros_like(rise))


def _finish(block: Block, state: State) -> Attention:
    out = state.O
    if out is None:  # no keys at all
        out = state.l.new_zeros((*state.l.shape[:-1], block.v.shape[-1]))
    if block.recipe.normalise.when == "end":
        out = divided(block, out, state.l)
    lse = log_sum_exp(block, state.m, state.l)
    return Attention(
        out, lse.squeeze(-1), state.rescales.squeeze(-1), state.rescaled_by.squeeze(-1)
    )


def _combine(parts: list[Attention]) -> Attention:
    """Join split keys: each stretch's output weighs exp(its LSE - the joint LSE)."""
    lse = torch.logsumexp(torch.stack([p.lse for p in parts]), 0)
    safe = lse.masked_fill(lse == float("-inf"), 0.0)
    weights = [(p.lse - safe).exp().unsqueeze(-1) for p in parts]
    out = torch.stack([p.out * w for p, w in zip(parts, weights, strict=True)]).sum(0)
    rescales = torch.stack([_joined([p.rescales], -1) for p in parts]).sum(0)
    rescaled_by = torch.stack([_joined([p.rescaled_by], -1) for p in parts]).sum(0)
    return Attention(out, lse, rescales, rescaled_by)
