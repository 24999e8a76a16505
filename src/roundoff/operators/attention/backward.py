"""The backward engine: dQ, dK and dV as a recipe's `Backward` computes them.

    B batch, H query heads, Hk key heads, R rows of the call, M keys, D, Dv head dims
    n, m one tile's queries and keys    P, dP, dS [B,H,n,m]    D, LSE [B,H,n,1]
    dQ [B,H,R,D]    dK [B,Hk,M,D]    dV [B,Hk,M,Dv]

Query tiles are walked outside, key tiles inside, so that one dQ tile and one pair of dK and
dV tiles are added to at a time. Rows that are not asked for are taken to have dO = 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from roundoff.errors import UnsupportedError
from roundoff.formats import FORMATS, Format
from roundoff.operators.arithmetic import matmul, plain_arithmetic, put, row_sum
from roundoff.operators.attention import fused_backward
from roundoff.operators.attention.backward_recipe import Backward
from roundoff.operators.attention.backward_steps import (
    Forward,
    Work,
    added,
    finished,
    gradient_of_scores,
    left_of_scale,
    normalised_weights,
    recomputed_weights,
)
from roundoff.operators.attention.call import Attention, Call
from roundoff.operators.attention.engine import LEAST_ROWS, attend
from roundoff.operators.attention.operands import prepare
from roundoff.operators.attention.recipe import Recipe, Tile
from roundoff.operators.attention.steps import Block

__all__ = ["Forward", "Gradients", "attend_keeping", "differentiate"]

MOST_SCORES = 2**24
"""Scores of one tile of all heads; where there are more, heads are taken a few at a time."""


@dataclass(frozen=True, slots=True)
class Gradients:
    """dQ [B,H,R,D] of the call's rows, dK [B,Hk,M,D], dV [B,Hk,M,Dv]."""

    dq: Tensor
    dk: Tensor
    dv: Tensor


def attend_keeping(recipe: Recipe, call: Call, storage: Format) -> tuple[Attention, Forward]:
    """What `attend` gives, and what the gradients need of it."""
    of = recipe.resolved(storage, head_dim=call.q.shape[-1], causal=call.mask.causal).forward
    carrier = "fp64" if of.wide or call.q.dtype == torch.float64 else "fp32"
    kept = attend(replace(of, output=FORMATS[carrier]), call, storage)
    out = put(kept.out, of.output)
    return replace(kept, out=out), Forward(out, kept.out, kept.lse)


def differentiate(
    recipe: Recipe, call: Call, forward: Forward, dout: Tensor, storage: Format
) -> Gradients:
    """The gradients of the call's rows, whose upstream gradient is `dout` [B,H,R,Dv].

    The rows ascend; others count as if their part of dout were zero, and cost nothing. A row
    that sees no key gives 0. NaN and infinities reach every sum that reads them. Raises
    `UnsupportedError` for a recipe without a backward pass, or one that needs another tile.
    """
    if recipe.backward is None:
        known = "its gradients are not known; give it a Backward"
        raise UnsupportedError(f"recipe {recipe.name!r} has no backward pass: {known}")
    d, q_len = call.q.shape[-1], call.lengths[0]
    recipe = recipe.resolved(storage, head_dim=d, causal=call.mask.causal)
    assert recipe.backward is not None
    how = recipe.backward.resolved(recipe, storage, head_dim=d, q_len=q_len)
    recipe = replace(recipe, backward=how)
    _check(recipe, how, call)
    again = how.recomputing(recipe)
    at, live, tiles = _query_tiles(call.rows, _tile(how), q_len)
    call = replace(call, rows=call.rows[at])
    with plain_arithmetic(call.q.device):
        q, k, v = prepare(again, call)
        picked = Forward(*(x[:, :, at].to(q.dtype) for x in _fields(forward)))
        dout = dout[:, :, at].to(q.dtype).masked_fill(~live[:, None], 0.0)
        work = Work(
            how, Block(again, call, q, k, v, call.rows), dout, picked, tiles,
            left_of_scale(again, call.scale),
        )  # fmt: skip
        dq, dk, dv = _of_groups(work, call.k.shape[1])
        dq = finished(how, dq[:, :, live], work.factors[0])
        return Gradients(put(dq, how.output), put(dk, how.output), put(dv, how.output))


def _fields(forward: Forward) -> tuple[Tensor, Tensor, Tensor]:
    return forward.stored, forward.exact, forward.lse


def _tile(how: Backward) -> Tile:
    assert isinstance(how.tile, Tile), "resolve the recipe before running it"
    return how.tile


def _check(recipe: Recipe, how: Backward, call: Call) -> None:
    """Refuse what the recipe's backward pass cannot follow."""
    if recipe.operands.rotate:
        raise UnsupportedError(f"recipe {recipe.name!r} rotates Q and K: no gradients of that")
    if how.weights != "recomputed" and not (
        isinstance(recipe.tile, Tile)
        and recipe.tile.keys is None
        and recipe.normalise.when == "block"
    ):
        raise UnsupportedError(
            f"recipe {recipe.name!r} saves P for its gradients, which takes all keys in one tile "
            "and P normalised before its product with V"
        )
    whole = how.delta_sum.order == "softmax" or how.weights != "recomputed"
    if whole and _tile(how).keys is not None:
        raise UnsupportedError(
            f"recipe {recipe.name!r}: a saved P and torch's derivative of softmax are of whole "
            "rows; leave the backward tile's keys at None"
        )
    if how.logits.scale == "fma" and not call.scale > 0:
        raise UnsupportedError(f"recipe {recipe.name!r} needs a positive scale, not {call.scale}")


def _query_tiles(rows: Tensor, tile: Tile, q_len: int) -> tuple[Tensor, Tensor, tuple[slice, ...]]:
    """Positions of the rows, tile by tile; which of them are asked for; and the tiles' stretches.

    A tile holds the rows of the call that lie in it. To one with few of many, its last is
    added again (with dO = 0) up to a matrix product's worth of rows.
    """
    size = tile.queries or max(1, q_len)
    at: list[Tensor] = []
    live: list[Tensor] = []
    tiles: list[slice] = []
    start = done = 0
    owners = cast("list[int]", (rows // size).tolist())  # pyright: ignore[reportUnknownMemberType]
    for number, members in itertools.groupby(owners):
        count = len(list(members))
        most = min(size, q_len - number * size)
        missing = max(0, min(LEAST_ROWS, most) - count)
        here = torch.arange(done, done + count, device=rows.device)
        at.append(torch.cat([here, here[-1:].expand(missing)]))
        live.append(torch.arange(count + missing, device=rows.device) < count)
        tiles.append(slice(start, start + count + missing))
        done, start = done + count, start + count + missing
    if not tiles:
        return rows, rows.bool(), ()
    return torch.cat(at), torch.cat(live), tuple(tile.in_order(tiles))


def _key_tiles(how: Backward, kv_len: int, queries: int) -> list[slice]:
    """The tiles of keys in the order in which the tile of `queries` adds them to its dQ."""
    tile = _tile(how)
    tiles = tile.cut(0, kv_len)
    if how.dq.order == "unordered":
        generator = torch.Generator().manual_seed(how.dq.seed * 1_000_003 + queries)
        drawn = torch.randperm(len(tiles), device="cpu", generator=generator)
        return [tiles[int(i)] for i in drawn]
    return tile.in_order(tiles)


def _of_groups(work: Work, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """dQ of every query head, unfinished, and dK and dV of every key head."""
    how, heads = work.how, work.block.q.shape[1]
    if heads == groups or how.heads is not None:
        dq, dk, dv = _of_all(work)
        dk = finished(how, dk, work.factors[1])
        return dq, _added_up(dk, groups, how), _added_up(dv, groups, how)
    dqs: list[Tensor] = []
    for member in range(heads // groups):
        one = _of_heads(work, slice(None), slice(member, None, heads // groups))
        dq, *sums = _of_all(replace(one, sums=work.sums))
        work = replace(work, sums=(sums[0], sums[1]))
        dqs.append(dq)
    assert work.sums is not None
    dk, dv = work.sums
    return torch.stack(dqs, 2).flatten(1, 2), finished(how, dk, work.factors[1]), dv


def _added_up(x: Tensor, groups: int, how: Backward) -> Tensor:
    """The sums over query heads that share a key head."""
    if x.shape[1] == groups or how.heads is None:
        return x
    shape = x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]
    return put(x, how.heads).view(shape).sum(2)


def _of_all(work: Work) -> list[Tensor]:
    """dQ, dK, dV of all heads, a few at a time where one tile of all would be too large."""
    if fused_backward.takes(work.how) and fused_backward.fits(work):
        delta = _delta(work, work.block, slice(None), [])
        assert delta is not None
        keys = _tile(work.how).cut(0, work.block.k.shape[-2])
        return list(fused_backward.gradients(work, list(_walks(work)), keys, delta))
    return _joined([_pass(part) for part in _by_heads(work)], work.block.q.shape[0])


def _by_heads(work: Work) -> Iterator[Work]:
    """The work cut into stretches of heads of one batch, if a tile of all would be too large."""
    block, tile = work.block, _tile(work.how)
    batch, heads = block.q.shape[:2]
    n = min(block.q.shape[-2], tile.queries or block.q.shape[-2])
    m = min(block.k.shape[-2], tile.keys or block.k.shape[-2])
    if n * m * batch * heads <= MOST_SCORES:
        yield work
        return
    step = max(1, MOST_SCORES // max(1, n * m))
    for b in range(batch):
        for h in range(0, heads, step):
            yield _of_heads(work, slice(b, b + 1), slice(h, h + step))


def _of_heads(work: Work, b: slice, h: slice) -> Work:
    block, mask = work.block, work.block.call.mask
    if mask.tensor is not None:
        of = (s if n > 1 else slice(None) for s, n in zip((b, h), mask.tensor.shape, strict=False))
        mask = replace(mask, tensor=mask.tensor[tuple(of)])
    part = replace(
        block, call=replace(block.call, mask=mask),
        q=block.q[b, h], k=block.k[b, h], v=block.v[b, h],
    )  # fmt: skip
    forward = Forward(*(x[b, h] for x in _fields(work.forward)))
    sums = None if work.sums is None else (work.sums[0][b, h], work.sums[1][b, h])
    return replace(work, block=part, dout=work.dout[b, h], forward=forward, sums=sums)


def _joined(parts: list[tuple[Tensor, ...]], batch: int) -> list[Tensor]:
    """Stretches of heads side by side, batches below each other."""
    if len(parts) == 1:
        return list(parts[0])
    each = len(parts) // batch
    return [
        torch.cat([torch.cat(of[b * each : (b + 1) * each], 1) for b in range(batch)])
        for of in ([part[i] for part in parts] for i in range(3))
    ]


def _walks(work: Work) -> Iterator[tuple[slice, list[slice]]]:
    """Each tile of queries, and the tiles of keys that it meets, in their order."""
    how, block = work.how, work.block
    for rows in work.tiles:
        of = block.rows[rows]
        first = int(of[0])
        walk = _key_tiles(how, block.k.shape[-2], first // (_tile(how).queries or first + 1))
        yield rows, [keys for keys in walk if block.call.mask.sees(of, keys, block.call.lengths)]


def _pass(work: Work) -> tuple[Tensor, Tensor, Tensor]:
    """dQ, dK and dV of every query head, before the scale is put on and the last casts."""
    how, block = work.how, work.block
    dq = torch.zeros_like(block.q)
    if work.sums is None:
        dk, dv = torch.zeros_like(block.k), torch.zeros_like(block.v)
    else:
        dk, dv = (x.clone() for x in work.sums)
    whole = _tile(how)
    for rows, walk in _walks(work):
        part = replace(block, q=block.q[..., rows, :], rows=block.rows[rows])
        dout, lse = work.dout[..., rows, :], work.forward.lse[..., rows, None]
        delta = _delta(work, part, rows, walk)
        for keys in walk:
            p, dp = _weights(work, part, keys, lse, dout)
            ds = gradient_of_scores(how, p, dp, delta, work.factors[0])
            weights = put(p, how.probabilities).transpose(-1, -2)
            running = whole.queries is not None or work.sums is not None
            onto = dv[..., keys, :] if running else None
            dv[..., keys, :] = added(onto, weights, dout, how.dv, 1.0)
            by_q, by_k = work.factors if how.scaled.at == "products" else (1.0, 1.0)
            onto = dk[..., keys, :] if running else None
            dk[..., keys, :] = added(onto, ds.transpose(-1, -2), part.q, how.dk, by_k)
            onto = dq[..., rows, :] if whole.keys else None
            dq[..., rows, :] = added(onto, ds, block.k[..., keys, :], how.dq, by_q)
    return dq, dk, dv


def _weights(
    work: Work, part: Block, keys: slice, lse: Tensor, dout: Tensor
) -> tuple[Tensor, Tensor]:
    """P and dP of one tile."""
    how = work.how
    if how.weights == "recomputed":
        p = recomputed_weights(part, keys, lse, how)
    else:
        p = normalised_weights(part, cast=how.weights == "saved")
    return p, matmul(dout, part.v[..., keys, :].transpose(-1, -2), how.dp)


def _delta(work: Work, part: Block, rows: slice, walk: list[slice]) -> Tensor | None:
    """D of a tile of queries; None where torch's derivative of softmax makes its own."""
    how, dout = work.how, work.dout[..., rows, :]
    if how.delta_sum.order == "softmax":
        return None
    if how.delta != "weights":
        out = work.forward.stored if how.delta == "stored" else work.forward.exact
        return row_sum(dout * out[..., rows, :], how.delta_sum)
    total = dout.new_zeros((*dout.shape[:-1], 1))
    lse = work.forward.lse[..., rows, None]
    for keys in walk:
        p, dp = _weights(work, part, keys, lse, dout)
        total = put(total + row_sum(p * dp, how.delta_sum), how.delta_sum.format)
    return total
