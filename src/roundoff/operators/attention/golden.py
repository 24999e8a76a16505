"""Golden attention: float64, whole or at sampled rows, in memory O(rows of a block x keys).

A golden row needs one query and all keys, so sampled rows cost O(rows x keys x head_dim),
and are exact rows of the whole result. `precise` goes far beyond float64 for float64
candidates.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from roundoff.operators.arithmetic import plain_arithmetic
from roundoff.operators.attention.call import Attention, Call
from roundoff.operators.attention.operands import shared_heads
from roundoff.operators.precise import as_numbers, as_pair
from roundoff.registry import require

__all__ = ["golden", "precise"]

BLOCK = 2**21
"""Scores held at a time."""


def golden(call: Call) -> tuple[Attention, dict[str, float]]:
    """Output and LSE of the call's rows in float64, and the condition of the problem.

    The error is at most 1e-14 of sum p|v| while logits stay below about 30 in size, and
    grows with float64's epsilon times the largest logit beyond. Fully masked rows give 0 and -inf.

    The condition: `cancellation`, the rms over outputs of sum p|v| over the rms of |o|, by
    which relative errors of P and V are magnified; `logit_max` and `logit_range` (largest
    size of a visible logit, and largest spread in a row).
    """
    with plain_arithmetic(call.q.device):
        q = call.q.double()[..., call.rows, :]
        k, v = (shared_heads(x.double(), q.shape[1]) for x in (call.k, call.v))
        size = max(1, BLOCK // max(1, k.shape[-2] * q.shape[0] * q.shape[1]))
        parts = [
            _rows(call, q[..., at : at + size, :], k, v, call.rows[at : at + size])
            for at in range(0, max(1, q.shape[-2]), size)
        ]
    out, lse, weight, logits = (
        torch.cat([p[i] for p in parts], axis) for i, axis in enumerate((-2, -1, -2, -2))
    )
    return Attention(out, lse), _condition(out, weight, logits)


def _rows(
    call: Call, q: Tensor, k: Tensor, v: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not k.shape[-2]:
        return _nothing_seen(q, v)
    s = (q @ k.transpose(-1, -2)) * call.scale
    s = call.mask.apply(s, rows, slice(0, k.shape[-2]), call.lengths)
    hidden = s == float("-inf")
    low = s.masked_fill(hidden, float("inf")).amin(-1, keepdim=True)
    m = s.amax(-1, keepdim=True)
    base = m.masked_fill(m == float("-inf"), 0.0)
    p = (s - base).exp_()
    total = p.sum(-1, keepdim=True)
    empty = total == 0
    out = ((p @ v) / total).masked_fill(empty, 0.0)
    weight = ((p @ v.abs()) / total).masked_fill(empty, 0.0)
    lse = (base + total.log()).squeeze(-1)
    return out, lse, weight, torch.cat([low, m], -1)


def _nothing_seen(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    zero = q.new_zeros((*q.shape[:-1], v.shape[-1]))
    lse = q.new_full(q.shape[:-1], -math.inf)
    return zero, lse, zero, torch.stack([-lse, lse], -1)


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
