"""The fast CPU path of the gradients: a tile's elementwise work in compiled loops.

The same sites in the same order as in `backward`, and the same bits. G heads are taken together.

    S, dP [G,n,m], then P, dS    Q, dO, dQ [G,n,D]    dK, dV a list of tiles [G,m,D]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from roundoff.formats import FORMATS, Format
from roundoff.operators.arithmetic import holds, magnitude, put, settled
from roundoff.operators.attention import fused
from roundoff.operators.attention._places import (
    ARGUMENT,
    DIFFERENCE,
    DP,
    DS,
    EXP,
    LOGITS,
    OUT,
    PRODUCT,
    QK,
    SCALED_DS,
    SCORES,
    WEIGHTS,
)
from roundoff.operators.attention.backward_recipe import Backward
from roundoff.operators.attention.backward_steps import Work, subtrahend
from roundoff.operators.attention.recipe import Logits, Recipe, Tile
from roundoff.registry import compiled_loops
from roundoff.sites import Accumulator, Exponential

__all__ = ["Walk", "fits", "gradients", "takes"]

HELD = 2**16
"""Scores of a tile that are held at a time, so that all that a tile reads stays in the cache."""

FP32 = FORMATS["fp32"]
# The fields of a backward pass that the path knows, or that are dealt with outside it.
_KNOWN = {
    "weights", "lse", "prescale", "qk", "scores", "logits", "exponential", "probabilities", "dp",
    "delta", "delta_sum", "difference", "ds", "scaled", "dq", "dk", "dv", "heads", "tile", "output",
}  # fmt: skip
_PLAIN = Backward()
_loops = partial(compiled_loops, "roundoff.operators.attention._backward_tile")
_PLACES = QK, SCORES, LOGITS, ARGUMENT, EXP, WEIGHTS, DP, DIFFERENCE, DS, SCALED_DS
_NO_STATE = np.zeros((3, 0), np.float32)
Walk = tuple[slice, Sequence[slice]]
"""A tile of queries, and the tiles of keys that it meets, in their order."""


@lru_cache(maxsize=1024)
def takes(how: Backward) -> bool:
    """Whether the path computes what a resolved backward pass asks for.

    P made again by the exact exponential, D from O, tiles of queries and of keys, every rounding
    to the nearest number, no sum in chunks; dK and dV may start from the running value.
    """
    unknown = {f.name: getattr(_PLAIN, f.name) for f in fields(Backward) if f.name not in _KNOWN}
    exponential = replace(how.exponential, base="e", log2e="argument", argument=FP32, format=FP32)
    sums = (how.qk, ""), (how.dp, ""), (how.dq, "unordered"), (how.dk, "fused"), (how.dv, "fused")
    return (
        all(getattr(how, name) == value for name, value in unknown.items())
        and how.weights == "recomputed"
        and how.delta in ("stored", "exact")
        and how.scaled.at in ("ds", "sums")
        and all(_plain_sum(total, other) for total, other in sums)
        and exponential == Exponential(argument=FP32, format=FP32)
        and replace(how.logits, scale="after", format=FP32) == Logits(format=FP32)
        and isinstance(how.tile, Tile)
        and how.tile.splits == 1
        and None not in (how.tile.keys, how.tile.queries)
        and all(fused.roundable(f) for f in _formats(how))
    )


def _plain_sum(total: Accumulator, other: str) -> bool:
    order = "library" if total.order == other else total.order
    plain = replace(total, format=FP32, rounds="operation", order=order, seed=0)
    return plain == Accumulator(FP32)


def _formats(how: Backward) -> list[Format]:
    """What is rounded to: at `_PLACES`, and in the three sums."""
    sums = (f for total in (how.dq, how.dk, how.dv) for f in (total.inner.format, total.format))
    chosen: tuple[Any, ...] = (
        how.qk.format, how.scores, how.logits.format, how.exponential.argument,
        how.exponential.format, how.probabilities, how.dp.format, how.difference, how.ds,
        how.scaled.format, *sums,
    )  # fmt: skip
    return [settled(f) for f in chosen]


def fits(work: Work) -> bool:
    """Whether this call's tensors and numbers are ones that the loops were written for.

    Scores may not overflow, LSE is finite or -inf, and dP is made of finite numbers.
    """
    dout, v = work.dout, work.block.v
    if not (work.tiles and fused.fits(work.block)):
        return False
    if type(dout) is not Tensor or dout.dtype != torch.float32 or not dout.numel():
        return False
    less = subtrahend(work.block, work.forward.lse, work.how)
    bound = magnitude(dout) * magnitude(v) * v.shape[-1]
    return bound < 2.0**120 and bool(less.isfinite().all()) and _loops() is not None


def gradients(
    work: Work, walks: Sequence[Walk], keys: Sequence[slice], delta: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dQ, dK and dV of every query head, as the readable pass leaves them.

    `keys` are all tiles of keys, and `delta` is D [B,H,R,1].
    """
    block = work.block
    less = subtrahend(block, work.forward.lse, work.how)
    columns = torch.stack([less, delta.squeeze(-1)]).flatten(1, 2).numpy()
    q, k, v, dout = (x.flatten(0, 1) for x in (block.q, block.k, block.v, work.dout))
    dq = torch.empty_like(q)
    sums = work.sums or (torch.zeros_like(block.k), torch.zeros_like(block.v))
    dk, dv = (x.flatten(0, 1).clone() for x in sums)
    n, m = (max(s.stop - s.start for s in of) for of in ([rows for rows, _ in walks], keys))
    together = min(len(q), max(1, HELD // (n * m)))
    memory = [q.new_empty(together * n * m) for _ in range(2)]
    memory.append(q.new_empty(together * max(n, m) * max(q.shape[-1], v.shape[-1])))
    for first in range(0, len(q), together):
        heads = slice(first, min(first + together, len(q)))
        tiles = {s.start: _Tile.of(s, *(x[heads, s] for x in (k, v, dk, dv))) for s in keys}
        part = _Heads(work, heads, tiles, memory)
        for rows, walk in walks:
            some = q[heads, rows], dout[heads, rows], columns[:, heads, rows]
            with _loops().threads((heads.stop - first) * n * m) as shared:
                dq[heads, rows] = _walk(part, (rows, walk), some, shared=shared)
        for tile in tiles.values():
            dk[heads, tile.at], dv[heads, tile.at] = tile.dk, tile.dv
    shape = block.q.shape[:2]
    return dq.view(*shape, *dq.shape[1:]), dk.view_as(block.k), dv.view_as(block.v)


@dataclass(frozen=True, slots=True)
class _Tile:
    """A tile of keys of some heads: K [G,m,D], K^T and V^T, and what dK and dV have come to."""

    at: slice
    k: Tensor
    k_t: Tensor
    v_t: Tensor
    dk: Tensor
    dv: Tensor

    @classmethod
    def of(cls, at: slice, k: Tensor, v: Tensor, dk: Tensor, dv: Tensor) -> _Tile:
        return cls(at, k, _turned(k), _turned(v), dk.contiguous(), dv.contiguous())


@dataclass(frozen=True, slots=True)
class _Heads:
    """Some heads, their tiles by the first key, and memory that is used again and again."""

    work: Work
    heads: slice
    tiles: dict[int, _Tile]
    memory: list[Tensor]

    def room(self, tile: _Tile, q: Tensor) -> _Room:
        """The memory cut to the queries Q [G,n,D] and the keys of this tile."""
        n = q.shape[1]
        shapes = *[(len(q), n, tile.k.shape[1])] * 2, tile.dv.shape, tile.dk.shape, q.shape
        of = zip((0, 1, 2, 2, 2), shapes, strict=True)
        s, dp, *products = (self.memory[i][: math.prod(shape)].view(shape) for i, shape in of)
        flat = tuple(x.numpy().reshape(len(q) * n, -1) for x in (s, dp))
        return _Room(s, dp, _turned(s), _turned(dp), flat, products)


@dataclass(frozen=True, slots=True)
class _Room:
    """S and dP of one tile, their transposes and rows, and the products for dV, dK and dQ."""

    s: Tensor
    dp: Tensor
    s_t: Tensor
    dp_t: Tensor
    flat: tuple[NDArray[np.float32], ...]
    products: list[Tensor]


def _turned(x: Tensor) -> Tensor:
    """Its transpose with the strides that the readable path gives it.

    Of a single row or column, they decide by which routine torch multiplies.
    """
    return x[None].transpose(-1, -2).flatten(0, 1)


def _walk(
    part: _Heads, at: Walk, of: tuple[Tensor, Tensor, NDArray[np.float32]], *, shared: bool
) -> Tensor:
    """One tile of queries of some heads: its dQ [G,n,D], `of` its Q, dO and columns [2,G,n]."""
    how, block, loops, (rows, walk) = part.work.how, part.work.block, _loops(), at
    differentiate = loops.differentiate_together if shared else loops.differentiate
    q, dout, columns = of[0], of[1], of[2].reshape(2, -1)
    dq = torch.zeros_like(q, memory_format=torch.contiguous_format)
    to_dv, to_dk, to_dq = (_Sum(total, shared) for total in (how.dv, how.dk, how.dq))
    steps = _plans(block.recipe), _settings(part.work)
    seen = fused.seen(block, rows, len(q))
    first, end = int(seen[0].max()), int(seen[1].min())
    rooms: dict[int, _Room] = {}
    for keys in walk:
        tile, width = part.tiles[keys.start], keys.stop - keys.start
        room = rooms.get(width) or rooms.setdefault(width, part.room(tile, q))
        torch.bmm(q, tile.k_t, out=room.s)
        torch.bmm(dout, tile.v_t, out=room.dp)
        fused.hide(block, part.heads, room.s, rows, keys)
        whole = first <= keys.start and keys.stop <= end
        mask = fused.EVERYWHERE if whole else seen
        differentiate(*room.flat, columns, mask, keys.start, steps)
        to_dv.add(tile.dv, room.s_t, dout, room.products[0])
        to_dk.add(tile.dk, room.dp_t, q, room.products[1])
        to_dq.add(dq, room.dp, tile.k, room.products[2])
    return dq


@lru_cache(maxsize=1024)
def _plans(recipe: Recipe) -> NDArray[np.int32]:
    """One row for each place in a tile that rounds."""
    assert recipe.backward is not None
    formats = dict(zip(_PLACES, _formats(recipe.backward), strict=False))
    rows = {at: fused.plan(format) for at, format in formats.items()}
    # S is stored as the product left it, and P as the exponential did.
    for at, before in ((SCORES, QK), (WEIGHTS, EXP)):
        if formats[at] == formats[before]:
            del rows[at]
    return np.array([rows.get(at, fused.NO_PLAN) for at in range(SCALED_DS + 1)], np.int32)


class _Sum:
    """How a tile's product is added to a sum, in its place: as `backward_steps.added` does it."""

    def __init__(self, total: Accumulator, shared: bool) -> None:
        self._fused = total.order == "fused"
        self._format = settled(total.format)
        self._rounds = not holds(self._format, FP32)
        self._add_up = _loops().add_up_together if shared else _loops().add_up
        self._plans = _sum_plans(total)

    def add(self, onto: Tensor, a: Tensor, b: Tensor, product: Tensor) -> None:
        if not self._fused:
            torch.bmm(a, b, out=product)
            flat = (x.numpy().reshape(-1, x.shape[-1]) for x in (onto, product))
            self._add_up(*flat, _NO_STATE, False, True, self._plans)
            return
        onto.baddbmm_(a, b)
        if self._rounds:
            onto.copy_(put(onto, self._format))


@lru_cache(maxsize=1024)
def _sum_plans(total: Accumulator) -> NDArray[np.int32]:
    """The plans with which `add_up` adds a product to this sum."""
    formats = settled(total.inner.format), settled(total.format)
    rows = dict(zip((PRODUCT, OUT), map(fused.plan, formats), strict=True))
    return np.array([rows.get(at, fused.NO_PLAN) for at in range(OUT + 1)], np.int32)


def _settings(work: Work) -> NDArray[np.float32]:
    onto_ds = work.how.scaled.at == "ds"
    return np.append(fused.settings(work.block), np.array([work.factors[0], onto_ds], np.float32))
