"""Golden gradients of attention: dQ, dK, dV in float64, a block of rows at a time.

    P = softmax(S)    dP = dO V^T    D = rowsum(dP P)    dS = P (dP - D)

The memory is O(rows of a block x keys). Rows that are not asked for count as if their part of
the upstream gradient were zero, so sampled rows cost O(rows x keys x head_dim).
"""

from __future__ import annotations

import torch
from torch import Tensor

from roundoff.operators.arithmetic import plain_arithmetic
from roundoff.operators.attention.backward import Gradients
from roundoff.operators.attention.call import Call
from roundoff.operators.attention.operands import shared_heads

__all__ = ["golden_gradients", "of_groups"]

BLOCK = 2**21
"""Scores held at a time."""


def golden_gradients(call: Call, dout: Tensor) -> Gradients:
    """The gradients of the call's rows for an upstream gradient `dout` [B,H,R,Dv], in float64.

    dK and dV are of all keys, summed over the query heads of a group. Fully masked rows give
    0 and add nothing; NaN and infinities reach every sum that reads them.
    """
    with plain_arithmetic(call.q.device):
        q, dout = call.q.double()[..., call.rows, :], dout.double()
        k, v = (shared_heads(x.double(), q.shape[1]) for x in (call.k, call.v))
        dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        size = max(1, BLOCK // max(1, k.shape[-2] * q.shape[0] * q.shape[1]))
        parts = [
            _add_rows(call, q[..., at : at + size, :], (k, v), dout[..., at : at + size, :],
                      (dk, dv), call.rows[at : at + size])
            for at in range(0, max(1, q.shape[-2]), size)
        ]  # fmt: skip
        groups = call.k.shape[1]
        return Gradients(torch.cat(parts, -2), of_groups(dk, groups), of_groups(dv, groups))


def _add_rows(
    call: Call, q: Tensor, kv: tuple[Tensor, Tensor], dout: Tensor,
    sums: tuple[Tensor, Tensor], rows: Tensor,
) -> Tensor:  # fmt: skip
    """dQ of a block of rows; its part of dK and dV is added to `sums`."""
    k, v = kv
    if not k.shape[-2]:
        return torch.zeros_like(q)
    s = (q @ k.transpose(-1, -2)) * call.scale
    s = call.mask.apply(s, rows, slice(0, k.shape[-2]), call.lengths)
    m = s.amax(-1, keepdim=True)
    p = (s - m.masked_fill(m == float("-inf"), 0.0)).exp_()
    total = p.sum(-1, keepdim=True)
    p = (p / total).masked_fill(total == 0, 0.0)
    dp = dout @ v.transpose(-1, -2)
    ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * call.scale
    sums[0].add_(ds.transpose(-1, -2) @ q)
    sums[1].add_(p.transpose(-1, -2) @ dout)
    return ds @ k


def of_groups(x: Tensor, groups: int) -> Tensor:
    """[B,H,M,D] of query heads, summed over those that share a key head."""
    shape = x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]
    return x.view(shape).sum(2)
