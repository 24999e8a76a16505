"""Golden attention: float64, whole or at sampled rows, in memory O(rows x head_dim).

A golden row needs one query and all keys, so sampled rows cost O(rows x keys x head_dim),
and are exact rows of the whole result. `precise` goes far beyond float64 for float64
candidates.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from roundoff.operators.arithmetic import magnitude, plain_arithmetic
from roundoff.operators.attention.call import Attention, Call
from roundoff.operators.attention.masks import Mask
from roundoff.operators.attention.operands import shared_heads
from roundoff.operators.exponentials import LOG2_E
from roundoff.operators.precise import as_numbers, as_pair
from roundoff.registry import compiled_loops, require

__all__ = ["golden", "precise"]

MOST_ROWS, LEAST_KEYS, HELD = 2048, 256, 2**17
"""Rows of a block, keys of a tile, and scores held at a time where there are fewer rows.

A tile has left the second cache before it is weighed, which costs less than more calls would.
"""

CONVERTED = 2**24
"""Keys times head dim up to which a head's K and V are taken to float64 as a whole."""

LN_2 = math.log(2)
_loops = partial(compiled_loops, "roundoff.operators.attention._weights")
SMALL = 900.0  # 2^x of nothing larger than this overflows or underflows, in sums neither


def golden(call: Call, *, condition: bool = True) -> tuple[Attention, dict[str, float]]:
    """Output and LSE of the call's rows in float64, and the condition of the problem.

    The error is at most 1e-14 of sum p|v| while logits stay below about 30 in size, and
    grows with float64's epsilon times the largest logit beyond. Fully masked rows give 0 and -inf.

    The condition: `cancellation`, the rms over outputs of sum p|v| over the rms of |o|, by
    which relative errors of P and V are magnified; `logit_max` and `logit_range` (largest
    size of a visible logit, and largest spread in a row). It takes half as long again, so that
    it can be left out.
    """
    shape, dims = (*call.q.shape[:2], len(call.rows)), call.v.shape[-1]
    # Sum p v, over l in the end; sum p|v| behind it where that is asked for.
    means = call.q.new_zeros((*shape, 2 * dims if condition else dims), dtype=torch.float64)
    ends = call.q.new_empty((*shape, 3), dtype=torch.float64)
    with plain_arithmetic(call.q.device):
        for b in range(shape[0]):
            for h in range(shape[1]):
                _head(call, b, h, means[b, h], ends[b, h])
    out, weight = means[..., :dims], means[..., dims:]
    result = Attention(out.contiguous(), ends[..., 0])
    return result, _condition(out, weight, ends[..., 1:]) if condition else {}


@dataclass(frozen=True, slots=True)
class _Head:
    """One head, with logits in powers of two: Q [R,D] in float64, and tiles of keys.

    A tile is its keys, K^T [D,K] and V [K,Dv] as given. `small`: no logit is larger than `SMALL`,
    so that nothing need be taken from any; `plain`: the compiled loops may have them, since there
    is no NaN and no infinity but -inf.
    """

    q: Tensor
    tiles: list[tuple[slice, Tensor, Tensor]]
    mask: Mask
    rows: Tensor
    lengths: tuple[int, int]
    small: bool
    plain: bool
    room: Tensor

    def scores(self, at: slice) -> Iterator[tuple[Tensor, Tensor]]:
        """S of a block of rows with each tile, in powers of two, hidden ones at -inf; and its V."""
        q, rows = self.q[at], self.rows[at]
        for keys, k, v in self.tiles:
            width = keys.stop - keys.start
            s = torch.mm(q, k.double(), out=self.room[: len(q) * width].view(-1, width))
            yield self.mask.apply(s, rows, keys, self.lengths, unit=LN_2), v.double()


def _head(call: Call, b: int, h: int, means: Tensor, ends: Tensor) -> None:
    """Fill in one head's rows: output (and sum p|v|); LSE, smallest and largest logit [R,3]."""
    group = h * call.k.shape[1] // call.q.shape[1]
    k, v = call.k[b, group], call.v[b, group]
    tensor = call.mask.tensor
    if tensor is not None:
        tensor = tensor.expand(*call.q.shape[:2], -1, -1)[b, h]
    mask = replace(call.mask, tensor=tensor)
    q = call.q[b, h, call.rows].double() * (call.scale * LOG2_E)
    bound = magnitude(q) * magnitude(k) * q.shape[-1]
    bounded = mask.kind != "additive" and math.isfinite(bound)
    plain = bounded and q.device.type == "cpu" and not torch.compiler.is_compiling()
    size = -(-len(q) // max(1, -(-len(q) // MOST_ROWS)))
    width = max(LEAST_KEYS, HELD // max(1, size))
    spans = [slice(at, min(at + width, len(k))) for at in range(0, len(k), width)]
    tiles = [(keys, k[keys].T, v[keys]) for keys in spans]
    if k.shape[-2] * max(k.shape[-1], v.shape[-1]) <= CONVERTED:
        tiles = [(keys, k.double(), v.double()) for keys, k, v in tiles]
    head = _Head(
        q, tiles, mask, call.rows, call.lengths, bounded and bound < SMALL, plain,
        q.new_empty(size * min(width, max(1, len(k)))),
    )  # fmt: skip
    for start in range(0, len(q), max(1, size)):
        at = slice(start, min(start + size, len(q)))
        ends[at] = _rows(head, at, means[at], v.shape[-1])


def _rows(head: _Head, at: slice, sums: Tensor, dims: int) -> Tensor:
    """LSE, smallest and largest logit of a block of rows; their means in place of `sums`."""
    column, condition = head.q.new_full((len(sums),), -math.inf), sums.shape[-1] > dims
    low, high = -column, column
    if not head.small:
        for s, _ in head.scores(at):
            high = torch.maximum(high, s.amax(-1))
    shift = high.masked_fill(high == -math.inf, 0.0)
    total = torch.zeros_like(column)
    with _weighing(head, shift, total) as weigh:
        for s, v in head.scores(at):
            if condition:
                low = torch.minimum(low, s.masked_fill(s == -math.inf, math.inf).amin(-1))
                high = torch.maximum(high, s.amax(-1))
            sums.addmm_(weigh(s), torch.cat([v, v.abs()], -1) if condition else v)
    sums.div_(total[:, None]).masked_fill_((total == 0)[:, None], 0.0)
    return torch.stack([shift * LN_2 + total.log(), low * LN_2, high * LN_2], -1)


@contextlib.contextmanager
def _weighing(head: _Head, shift: Tensor, total: Tensor) -> Generator[Callable[[Tensor], Tensor]]:
    """2^(S - shift), in place of S where that can be; its row sums are added to `total`."""
    loops = _loops() if head.plain else None
    if loops is None:

        def plainly(s: Tensor) -> Tensor:
            p = torch.exp2(s if head.small else s - shift[:, None])
            total.add_(p.sum(-1))
            return p

        yield plainly
        return
    needless = head.small and head.mask.kind == "none"
    columns = shift[: 0 if needless else None].numpy(), total.numpy()
    with loops.threads(head.room.numel()) as shared:
        into = loops.weigh_together if shared else loops.weigh

        def quickly(s: Tensor) -> Tensor:
            into(s.numpy(), *columns)
            return s

        yield quickly


def _condition(out: Tensor, weight: Tensor, logits: Tensor) -> dict[str, float]:
    low, high = logits[..., 0], logits[..., 1]
    seen = high > float("-inf")
    low, high = low[seen], high[seen]
    if not low.numel():
        return {"cancellation": math.nan, "logit_max": 0.0, "logit_range": 0.0}
    size = torch.maximum(low.abs(), high.abs())
    return {
        "cancellation": (weight.square().mean().sqrt() / out.square().mean().sqrt()).item(),
        "logit_max": size.max().item(),
        "logit_range": (high - low).max().item(),
    }


def precise(call: Call, *, digits: int = 50) -> tuple[Attention, Attention]:
    """Output and LSE to `digits` decimal digits with mpmath, as float64 and the remainder.

    Slow (about a microsecond a multiplication): meant for a few rows.
    """
    mpmath: Any = require("mpmath", extra="analysis", purpose="golden beyond float64")
    with mpmath.workdps(digits):
        pair = as_pair(mpmath, _precise_rows(mpmath, call), call.q.device)
    shape = (*call.q.shape[:2], len(call.rows))
    high, low = (Attention(x[:, :-1].reshape(*shape, -1), x[:, -1].reshape(shape)) for x in pair)
    return high, low


def _precise_rows(mp: Any, call: Call) -> list[list[Any]]:
    """For each batch, head and row: Dv outputs and, last, the LSE."""
    q = call.q.double()[..., call.rows, :]
    k, v = (shared_heads(x.double(), q.shape[1]) for x in (call.k, call.v))
    zero = torch.zeros(*q.shape[:-1], k.shape[-2], dtype=torch.float64, device=q.device)
    bias = call.mask.apply(zero, call.rows, slice(0, k.shape[-2]), call.lengths)
    flat = [as_numbers(x.flatten(0, 1)) for x in (q, k, v, bias)]
    return [
        _precise_row(mp, row, keys, values, (extra, call.scale))
        for queries, keys, values, extras in zip(*flat, strict=True)
        for row, extra in zip(queries, extras, strict=True)
    ]


def _precise_row(
    mp: Any,
    q: list[float],
    keys: list[list[float]],
    values: list[list[float]],
    bias: tuple[list[float], float],
) -> list[Any]:
    added, scale = bias
    seen = [j for j, x in enumerate(added) if x != -math.inf]
    if not seen:
        return [mp.mpf(0)] * len(values[0]) + [-mp.inf]
    s = [mp.fdot(q, keys[j]) * mp.mpf(scale) + added[j] for j in seen]
    m = max(s)
    p = [mp.exp(x - m) for x in s]
    total = mp.fsum(p)
    columns = zip(*(values[j] for j in seen), strict=True)
    return [mp.fdot(p, column) / total for column in columns] + [m + mp.log(total)]
