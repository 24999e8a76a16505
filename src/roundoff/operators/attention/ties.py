"""Tied maxima: how many rows hold a second key that weighs as much as their largest.

B batch, H heads, R rows, M keys    S [B,H,R,M] scores
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from roundoff.formats import Format
from roundoff.operators.arithmetic import plain_arithmetic
from roundoff.operators.attention.call import Call
from roundoff.operators.attention.operands import shared_heads

__all__ = ["at_one", "tied_share"]

MOST_ROWS, HELD, KEYS = 64, 2**22, 2**12
"""Rows of a head that are looked at, scores held at a time, keys converted at a time."""


def tied_share(call: Call, format: Format) -> float:
    """The share of rows in which exp(S - m), rounded to `format`, is 1 at more than one key.

    Of rows that see a key, and of at most 64 a head, evenly spaced, so that it costs little
    beside golden. NaN where no row sees one, or where a score is NaN or infinite.
    """
    (batch, heads), keys = call.q.shape[:2], call.k.shape[-2]
    most = min(MOST_ROWS, max(1, HELD // max(1, batch * heads * keys)))
    rows = call.rows[:: max(1, math.ceil(len(call.rows) / most))]
    if not len(rows) or not keys:
        return math.nan
    call = replace(call, rows=rows)
    with plain_arithmetic(call.q.device):
        s = torch.cat([_scores(call, at) for at in _parts(keys)], -1)
    largest = s.amax(-1, keepdim=True)
    seen = (largest > -math.inf).squeeze(-1)
    if not seen.any() or not largest[seen].isfinite().all():
        return math.nan
    return (at_one(s, largest, format).sum(-1) > 1)[seen].double().mean().item()


def at_one(s: Tensor, largest: Tensor, format: Format) -> Tensor:
    """Where exp(S - m), rounded to `format`, is 1: at m, and at scores very near to it."""
    # Below 1 numbers are eps / 2 apart, and the tie between 1 and the next goes to 1.
    return s - largest >= math.log1p(-format.eps / 4)


def _parts(keys: int) -> list[slice]:
    return [slice(at, min(at + KEYS, keys)) for at in range(0, keys, KEYS)]


def _scores(call: Call, keys: slice) -> Tensor:
    k = shared_heads(call.k[..., keys, :].double(), call.q.shape[1])
    s = call.q[..., call.rows, :].double() @ k.transpose(-1, -2) * call.scale
    return call.mask.apply(s, call.rows, keys, call.lengths)
