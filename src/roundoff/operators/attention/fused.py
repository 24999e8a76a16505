"""The fast CPU path: a tile's elementwise work in compiled loops between two matrix products.

The same sites in the same order as in `engine`, and the same bits. G heads are taken together.

    S [G,R,K] scores, then P    O, part [G,R,Dv]    state [5,G*R]: see `_tile`
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from roundoff.formats import FORMATS, Format
from roundoff.formats._plan import FLOAT32, make_plan
from roundoff.operators.arithmetic import holds, magnitude, put, settled
from roundoff.operators.attention._places import (
    ARGUMENT,
    BY_DROPPING,
    BY_FMA,
    EXP,
    IN_FULL,
    OUT,
    PLAIN,
    PRODUCT,
    QK,
    SCORES,
    TIMES,
    WEIGHTS,
)
from roundoff.operators.attention.call import Attention
from roundoff.operators.attention.recipe import Logits, Maximum, Normalise, Recipe, RowSum, Tile
from roundoff.operators.attention.steps import HIDDEN, Block, divided, log_sum_exp
from roundoff.operators.exponentials import LOG2_E
from roundoff.registry import compiled_loops
from roundoff.sites import Accumulator, Exponential, Quantizer

__all__ = [
    "EVERYWHERE",
    "NO_PLAN",
    "attend",
    "fits",
    "hide",
    "plan",
    "plans",
    "roundable",
    "seen",
    "settings",
    "takes",
]

HELD = 2**17
"""Scores of a tile that are held at a time: half of a core's second cache, in float32."""

ENOUGH = 2**12
"""Numbers of O that tell how a product is added to them; fewer take little time in any case."""

MOST_ROWS, LEAST_ROWS = 512, 64
FP32 = FORMATS["fp32"]
# The fields of a recipe that the path knows, or that are dealt with outside it.
_KNOWN = {
    "name", "doc", "source", "known", "operands", "prescale", "qk", "scores", "logits",
    "exponential", "maximum", "probabilities", "row_sum", "pv", "normalise", "tile", "output",
    "backward",
}  # fmt: skip
_PLAIN = Recipe(name="", doc="")
_loops = partial(compiled_loops, "roundoff.operators.attention._product")


@lru_cache(maxsize=1024)
def takes(recipe: Recipe) -> bool:
    """Whether the path computes what a resolved recipe asks for; what it does not know, it refuses.

    All sums in the order `library` without chunks, the exponential exact, every rounding to
    the nearest number, O divided at the end, the maximum running (lazily or not).
    """
    unknown = {f.name: getattr(_PLAIN, f.name) for f in fields(Recipe) if f.name not in _KNOWN}
    how, tile = recipe.exponential, recipe.tile
    sums = (recipe.qk, recipe.pv, recipe.row_sum.accumulator)
    return (
        not recipe.forward.wide
        and all(getattr(recipe, name) == value for name, value in unknown.items())
        and all(replace(s, format=FP32, rounds="operation") == Accumulator(FP32) for s in sums)
        and replace(how, base="e", log2e="argument", argument=FP32, format=FP32)
        == Exponential(argument=FP32, format=FP32)
        and replace(recipe.logits, scale="after", format=FP32) == Logits(format=FP32)
        and replace(recipe.row_sum, adds="before", accumulator=Accumulator()) == RowSum()
        and recipe.maximum.rule in ("always", "lazy")
        and replace(recipe.maximum, rule="always", threshold=0.0, format=FP32, factor=FP32)
        == Maximum(format=FP32, factor=FP32)
        and replace(recipe.normalise, by="division", format=FP32) == Normalise(format=FP32)
        and isinstance(tile, Tile)
        and tile.splits == 1
        and tile.direction != "cut-first"
        and _castable(recipe.probabilities)
        and all(roundable(f) for f in _formats(recipe))
    )


def _castable(p: Any) -> bool:
    if not isinstance(p, Quantizer):
        return True
    plain = Quantizer(p.element, p.scale, p.factor)
    return p.scale in ("none", "fixed") and p == plain


def _formats(recipe: Recipe) -> list[Format]:
    """The formats of the forward pass's rows of `plans`, in their order."""
    p, inner = recipe.probabilities, recipe.row_sum.accumulator.inner
    weights = p.element if isinstance(p, Quantizer) else p
    chosen = (
        recipe.qk.format, recipe.scores, recipe.logits.format, recipe.exponential.argument,
        recipe.exponential.format, weights, recipe.maximum.format, recipe.maximum.factor,
        inner.format, recipe.row_sum.accumulator.format, recipe.pv.inner.format, recipe.pv.format,
    )  # fmt: skip
    return [settled(f) for f in chosen]


def roundable(format: Format) -> bool:
    """Whether the loops round to it as `arithmetic.put` does."""
    return format.negative_zero or format.bits >= FP32.bits


def fits(block: Block) -> bool:
    """Whether this call's tensors and numbers are ones that the loops were written for.

    Scores may not overflow (NaN and infinities then come from V alone), and -inf, which hides
    keys, must stay what it is when it is scaled.
    """
    q, k, scale = block.q, block.k, block.call.scale
    if not (q.numel() and k.numel() and block.v.numel()) or not scale > 0:
        return False
    if any(type(x) is not Tensor or x.dtype != torch.float32 or x.device.type != "cpu"
           for x in (q, k, block.v)):  # fmt: skip
        return False
    if block.call.mask.kind == "additive" or torch.compiler.is_compiling():
        return False
    formats = _formats(block.recipe)
    largest = min([2.0**120, *(f.max for f in formats[QK : ARGUMENT + 1] if f.infinities)])
    bound = magnitude(q) * magnitude(k) * (q.shape[-1] * max(1.0, scale) * LOG2_E)
    return bound < largest and _loops() is not None


def attend(block: Block, tiles: list[slice]) -> Attention:
    """All tiles of all rows, some rows of a few heads at a time, so that the cache holds them."""
    q, k, v = (x.flatten(0, 1) for x in (block.q, block.k, block.v))
    heads, rows, keys = q.shape[0], q.shape[1], max(t.stop - t.start for t in tiles)
    out = q.new_empty((heads, rows, v.shape[-1]))
    state = q.new_empty((5, heads, rows, 1))
    size = _rows_at_once(rows, keys)
    # Each thread's core has a cache of its own.
    together = min(heads, max(1, torch.get_num_threads() * HELD // (size * keys)))
    room = _Room(*(q.new_empty(together * size * n) for n in (keys, v.shape[-1], v.shape[-1])))
    all_seen = seen(block, slice(0, rows), 1)
    for first in range(0, heads, together):
        group = slice(first, min(first + together, heads))
        cut = _cut(k[group].transpose(1, 2), v[group], tiles)
        part = _Heads(block, group, tiles, *cut, all_seen)
        for start in range(0, rows, size):
            at = slice(start, min(start + size, rows))
            with _loops().threads((group.stop - first) * size * keys) as shared:
                found, O = _walk(part, q[group, at], at, room, shared=shared)  # noqa: E741
            state[:, group, at] = found
            out[group, at] = put(divided(block, O, found[1]), block.recipe.output)
    shape = block.q.shape[:-1]
    m, l, _, rescales, rescaled_by = state.view(5, *shape, 1)  # noqa: E741
    lse = log_sum_exp(block, m, l)
    return Attention(
        out.view(*shape, -1), lse.squeeze(-1), rescales.squeeze(-1), rescaled_by.squeeze(-1)
    )


def _rows_at_once(rows: int, keys: int) -> int:
    """So many rows that a product is fast and its scores stay in the cache; equal blocks."""
    most = max(LEAST_ROWS, min(MOST_ROWS, 4 * HELD // keys))
    return -(-rows // -(-rows // most))


def _cut(k: Tensor, v: Tensor, tiles: list[slice]) -> tuple[list[Tensor], list[Tensor]]:
    """The tiles of K^T [G,D,M] and of V [G,M,Dv]."""
    return [k[..., keys] for keys in tiles], [v[:, keys] for keys in tiles]


@dataclass(frozen=True, slots=True)
class _Room:
    """Memory that is used again and again: for S, O and one tile's product with V."""

    scores: Tensor
    out: Tensor
    product: Tensor


@dataclass(frozen=True, slots=True)
class _Heads:
    """Some heads of a block, cut into tiles: K^T [G,D,K] and V [G,K,Dv] each.

    `seen` [2,R] is that of all rows of the block.
    """

    block: Block
    group: slice
    tiles: list[slice]
    k: list[Tensor]
    v: list[Tensor]
    seen: NDArray[np.int64]


def hide(block: Block, group: slice, s: Tensor, rows: slice, keys: slice) -> None:
    """Put -inf into S [G,R,K] of these heads where a boolean mask hides a key."""
    if block.call.mask.tensor is not None:
        seen = block.call.mask.tensor[..., block.rows[rows], keys]
        seen = seen.expand(*block.q.shape[:2], -1, -1).flatten(0, 1)[group]
        s.masked_fill_(~seen, HIDDEN)


EVERYWHERE = np.zeros((2, 0), np.int64)
NO_PLAN = (0,) * 9


def _walk(
    part: _Heads, q: Tensor, at: slice, room: _Room, *, shared: bool
) -> tuple[Tensor, Tensor]:
    """Some rows of a group of heads: the state [5,G,R,1] after the last tile, and O [G,R,Dv]."""
    loops, block = _loops(), part.block
    take_in = loops.take_in_together if shared else loops.take_in
    add_up = loops.add_up_together if shared else loops.add_up
    heads, rows, _ = q.shape
    state = np.zeros((5, heads * rows), np.float32)
    state[0] = HIDDEN
    dims = part.v[0].shape[-1]
    O, product = (  # noqa: E741
        x[: heads * rows * dims].view(heads, rows, dims) for x in (room.out, room.product)
    )
    o, added = (x.numpy().reshape(heads * rows, -1) for x in (O, product))
    how = plans(block.recipe), settings(block)
    of = part.seen[:, at]
    first, end = int(of[0].max()), int(of[1].min())
    of = np.tile(of, heads) if first > 0 or end < block.k.shape[-2] else EVERYWHERE
    onto = not how[0][PRODUCT : OUT + 1].any() and _added_in_product(part.tiles, O)
    s, flat = room.scores, None
    for number, keys in enumerate(part.tiles):
        if not number or keys.stop - keys.start != s.shape[-1]:
            s = room.scores[: heads * rows * (keys.stop - keys.start)].view(heads, rows, -1)
            flat = s.numpy().reshape(heads * rows, -1)
        torch.bmm(q, part.k[number], out=s)
        hide(block, part.group, s, at, keys)
        whole = first <= keys.start and keys.stop <= end
        rescaled = o[:, : dims if onto and number else 0]
        take_in(flat, rescaled, state, EVERYWHERE if whole else of, keys.start, how)
        if onto and number:
            O.baddbmm_(s, part.v[number])
            continue
        if number:
            add_up(o, added, state, number == 1, False, how[0])
        torch.bmm(s, part.v[number], out=O if onto else product)
    if not onto:
        add_up(o, added, state, len(part.tiles) == 1, True, how[0])
    return torch.as_tensor(state).view(5, heads, rows, 1), O


def _added_in_product(tiles: list[slice], out: Tensor) -> bool:
    widths = {keys.stop - keys.start for keys in tiles}
    return all(_adds_last(*out.shape, width, torch.get_num_threads()) for width in sorted(widths))


@lru_cache(maxsize=256)
def _adds_last(heads: int, rows: int, dims: int, width: int, _threads: int) -> bool:
    """Whether a product that torch adds to O gives the bits of the product, then the sum.

    Libraries do so at some shapes, and at others begin their sum with O: one try tells.
    """
    if heads * rows * dims < ENOUGH:
        return False
    numbers = torch.Generator().manual_seed(0)
    p, v, onto = (
        torch.randn(shape, generator=numbers)
        for shape in ((heads, rows, width), (heads, width, dims), (heads, rows, dims))
    )
    return torch.equal(onto + torch.bmm(p, v), torch.baddbmm(onto, p, v))


def seen(block: Block, at: slice, heads: int) -> NDArray[np.int64]:
    """For each row of each head, the first key that it sees and the first beyond."""
    first, end = block.call.mask.seen(block.rows[at], block.call.lengths)
    return torch.stack([first, end]).to(torch.int64).repeat(1, heads).numpy()


@lru_cache(maxsize=1024)
def plans(recipe: Recipe) -> NDArray[np.int32]:
    """One row for each place that rounds: whether and how, and the integers of `Plan`."""
    fixed = isinstance(recipe.probabilities, Quantizer) and recipe.probabilities.scale == "fixed"
    formats = _formats(recipe)
    rows = [plan(f, saturates=fixed and at == WEIGHTS) for at, f in enumerate(formats)]
    if formats[SCORES] == formats[QK]:  # S is stored as the product left it
        rows[SCORES] = NO_PLAN
    if formats[WEIGHTS] == formats[EXP] and not fixed:  # and P as the exponential did
        rows[WEIGHTS] = NO_PLAN
    return np.array(rows, np.int32)


def plan(format: Format, *, saturates: bool = False) -> tuple[int, ...]:
    """Whether and how the loops round to a format, and the integers of `Plan`."""
    if holds(format, FP32):
        return NO_PLAN
    overflow = "saturate" if saturates or not format.infinities else "inf"
    plan = make_plan(format, FLOAT32, "nearest", overflow)
    assert plan is not None
    shares = (format.emin, format.emax) == (FP32.emin, FP32.emax) and overflow == "inf"
    return (
        BY_DROPPING if shares else IN_FULL, plan.drop, plan.reach, plan.tiny, plan.top,
        plan.over_positive, plan.over_negative, plan.infinite, plan.carrier.infinity,
    )  # fmt: skip


def settings(block: Block) -> NDArray[np.float32]:
    """What the steps do, and with which numbers, in the order of `_places`."""
    recipe, p = block.recipe, block.recipe.probabilities
    exp, scale = recipe.exponential, recipe.logits.scale
    fixed = isinstance(p, Quantizer) and p.scale == "fixed"
    numbers = (
        block.call.scale * block.base,
        block.waiting,
        block.exponent,
        block.unit * LOG2_E,
        recipe.maximum.threshold,
        p.factor if isinstance(p, Quantizer) else 1.0,
    )
    steps = (
        not block.waits and scale != "before",
        {"fma": BY_FMA, "argument": TIMES}.get(scale, PLAIN),
        exp.base == "2" and exp.log2e == "argument",
        exp.base == "2",
        recipe.row_sum.adds == "after",
        recipe.maximum.rule == "lazy",
        fixed,
    )
    return np.array(numbers + steps, np.float32)
