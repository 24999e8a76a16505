"""The readable twin of rounding: integer arithmetic in torch, on any device.

Integers, because a cast may be deleted by a compiler, round twice or flush subnormals.
"""

from __future__ import annotations

import torch
from torch import Tensor

from roundoff.formats._plan import Mode, Plan

__all__ = ["round_into", "rounded"]


def round_into(x: Tensor, out: Tensor, plan: Plan, key: int) -> None:
    """Round `x` into `out`; the same contract as the fast twin's, on any device."""
    out.copy_(rounded(x, plan, key))


def rounded(x: Tensor, plan: Plan, key: int) -> Tensor:
    """`x` rounded as `plan` says; `key` is what stochastic rounding draws from.

    A magnitude is cut into its exponent field and its significand `sig`; the lowest `s` bits of
    `sig` are rounded off; field and significand are then added up, which carries into the
    exponent by itself. Beyond `M + 2` bits nothing of `sig` is left, so `s` stops there, and a
    value that is rounded up from there is the smallest subnormal.
    """
    M = plan.carrier.mantissa
    integers = torch.int32 if M == 23 else torch.int64
    bits = x.view(integers)
    magnitude = bits & torch.iinfo(integers).max
    sign = bits ^ magnitude
    field = (magnitude >> M).clamp(min=1)
    base = (field - 1) << M
    sig = magnitude - base
    full = (plan.reach - field).clamp(min=plan.drop)
    s = full.clamp(max=M + 2)
    quantum = torch.ones_like(s) << s
    rem = sig & (quantum - 1)
    if plan.mode == "stochastic":
        grows = _draw(rem, key) < _threshold(rem, full)
    else:
        grows = _grows(plan.mode, sig, rem, quantum, sign != 0)
    kept = sig - rem + torch.where(grows, quantum, 0)
    r = torch.where(s == M + 2, plan.tiny, base + kept)
    r = torch.where(kept == 0, 0, r)
    over = torch.where(sign != 0, plan.over_negative, plan.over_positive)
    r = torch.where(r > plan.top, over, r)
    r = torch.where(magnitude == plan.carrier.infinity, plan.infinite, r)
    if not plan.negative_zero:
        sign = torch.where(r == 0, 0, sign)
    nan = magnitude > plan.carrier.infinity
    return torch.where(nan, bits, r | sign).to(integers).view(x.dtype)


def _grows(mode: Mode, sig: Tensor, rem: Tensor, quantum: Tensor, negative: Tensor) -> Tensor:
    """Whether the magnitude that is kept grows by one quantum."""
    match mode:
        case "nearest":
            odd = ((sig & quantum) != 0).to(rem.dtype)
            return rem + rem + odd > quantum
        case "nearest-away":
            return rem + rem >= quantum
        case "up":
            return (rem != 0) & ~negative
        case "down":
            return (rem != 0) & negative
        case _:
            return torch.zeros_like(negative)


def _threshold(rem: Tensor, full: Tensor) -> Tensor:
    """`rem / 2**full` in units of 2**-32, rounded down."""
    left, right = (32 - full).clamp(min=0), (full - 32).clamp(0, 63)
    return (rem.to(torch.int64) << left) >> right


def _draw(like: Tensor, key: int) -> Tensor:
    """Thirty-two random bits per element: a hash of its index and the two halves of `key`."""
    index = torch.arange(like.numel(), device=like.device).view(like.shape)
    h = _mix((index + (key & 0xFFFFFFFF)) & 0xFFFFFFFF)
    return _mix(((h ^ (key >> 32 & 0xFFFFFFFF)) + (index >> 32)) & 0xFFFFFFFF)


def _mix(h: Tensor) -> Tensor:
    """Spread every bit over all 32 ("lowbias32", C. Wellons); int64 holds the unsigned word."""
    h = ((h ^ (h >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    h = ((h ^ (h >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return h ^ (h >> 16)
