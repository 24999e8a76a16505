"""What rounding alone may do to attention's gradients: the size of it, to first order.

    P = softmax(S)    dP = dO V^T    D = rowsum(dP P)    dS = P (dP - D)

Where the softmax is saturated, dP - D cancels and a row has one large weight: of two sound kernels
one may then be off a thousand times as far as the other, both by next to nothing. An error
is held against this size too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from roundoff.formats import Format
from roundoff.operators.arithmetic import plain_arithmetic
from roundoff.operators.attention.backward import Gradients
from roundoff.operators.attention.call import Call
from roundoff.operators.attention.golden_gradients import of_groups
from roundoff.operators.attention.operands import shared_heads

__all__ = ["gradient_noise"]


def gradient_noise(call: Call, lse: Tensor, dout: Tensor, storage: Format) -> Gradients:
    """The square of the error that each element of dQ, dK and dV may have, in float64.

    Every product, sum, and argument of the exponential is off by an independent half ulp of float32
    (of float64 for `storage` that wide). `lse` [B,H,R] is golden's; shapes and rows are those of
    `golden_gradients`.
    """
    unit = (2.0**-53 if storage.bits > 32 else 2.0**-24) ** 2
    with plain_arithmetic(call.q.device):
        q, dout = call.q.double()[..., call.rows, :], dout.double()
        k, v = (shared_heads(x.double(), q.shape[1]) for x in (call.k, call.v))
        lse = lse.double()[..., None]
        kt, vt = k.transpose(-1, -2), v.transpose(-1, -2)
        s = q @ kt * call.scale
        visible = call.mask.apply(s, call.rows, slice(0, k.shape[-2]), call.lengths)
        p2 = (visible - lse.masked_fill(lse == -torch.inf, 0.0)).exp().square()
        dp = dout @ vt
        d = (p2.sqrt() * dp).sum(-1, keepdim=True)
        exponent = unit * (q.square() @ kt.square() * call.scale**2 + s.square() + lse.square())
        exponent = exponent.masked_fill(p2 == 0, 0.0)
        of_dp = unit * (dout.square() @ vt.square() + dp.square())
        of_d = (p2 * (exponent * dp.square() + of_dp)).sum(-1, keepdim=True) + unit * d.square()
        of_ds = p2 * (exponent * (dp - d).square() + of_dp + of_d) * call.scale**2
        dk = of_ds.transpose(-1, -2) @ q.square()
        dv = (p2 * exponent).transpose(-1, -2) @ dout.square()
        groups = call.k.shape[1]
        return Gradients(of_ds @ k.square(), of_groups(dk, groups), of_groups(dv, groups))
