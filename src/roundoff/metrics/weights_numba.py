"""The compiled loop of `weights`: every sum of two blocks of finite floats in one pass.

LLVM may reorder the sums, so they agree with torch's to about fifteen digits.
"""
# Types in here are Numba's, which has no stubs.
# pyright: reportUntypedFunctionDecorator=false, reportMissingParameterType=false
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownParameterType=false

from __future__ import annotations

from functools import partial

import numba
import numpy as np
import torch
from torch import Tensor

from roundoff.formats._compiled import compiled
from roundoff.metrics.at_once import at_once, parts_for_threads
from roundoff.metrics.instructions import added, bits, wide
from roundoff.metrics.weights import BITS, WeightDistance, made

__all__ = ["gathered_by_numba"]

CHUNK = 4096
_I64, _F64 = np.int64, np.float64
# The smallest magnitude, as bits, that is not finite.
_INFINITE = {
    torch.bfloat16: 0x7F80,
    torch.float16: 0x7C00,
    torch.float32: 0x7F800000,
    torch.float64: 0x7FF << 52,
    torch.float8_e4m3fn: 0x7F,
    torch.float8_e5m2: 0x7C,
}


@numba.njit(nogil=True)
def _chunk(codes, values, limits, sums, counts):
    (p, q), (a, b), (mask, infinite) = codes, values, limits
    ee = aa = bb = ab = abs_e = abs_a = steps = 0.0
    differing = flips = nonfinite = largest_e = largest_steps = _I64(0)
    for i in range(p.size):
        x, y = _I64(p[i]), _I64(q[i])
        m, n = x & mask, y & mask
        nonfinite += _I64(m >= infinite) + _I64(n >= infinite)
        differing += _I64(x != y)
        flips += _I64((x ^ y) < 0) & _I64(m != 0) & _I64(n != 0)
        step = _F64(abs(m - n)) if (x ^ y) >= 0 else _F64(m) + _F64(n)
        steps, largest_steps = added(steps, step), max(largest_steps, bits(step))
        g, h = wide(a[i]), wide(b[i])
        e = h - g
        ee, aa, bb = added(ee, e * e), added(aa, g * g), added(bb, h * h)
        ab, abs_e, abs_a = added(ab, g * h), added(abs_e, abs(e)), added(abs_a, abs(g))
        largest_e = max(largest_e, bits(abs(e)))
    for at, value in enumerate((ee, aa, bb, ab, abs_e, abs_a, steps)):
        sums[at] += value
    for at, count in enumerate((differing, flips, nonfinite)):
        counts[at] += count
    counts[3], counts[4] = max(counts[3], largest_e), max(counts[4], largest_steps)


@compiled
def _gather(codes, values, limits, sums, counts):
    """In chunks, so that the sums stay exact to fifteen digits."""
    (p, q), (a, b) = codes, values
    for start in range(0, p.size, CHUNK):
        end = min(start + CHUNK, p.size)
        some = (p[start:end], q[start:end]), (a[start:end], b[start:end])
        _chunk(some[0], some[1], limits, sums, counts)


def gathered_by_numba(a: Tensor, b: Tensor) -> WeightDistance | None:
    """What is known of two flat CPU tensors of one float dtype; None where not all is finite."""
    if a.dtype not in _INFINITE:
        return None
    integers = BITS[a.dtype.itemsize]
    p, q = (t.contiguous().view(integers).numpy() for t in (a, b))
    if a.dtype is torch.bfloat16:
        g, h = p, q
    else:
        values = torch.float64 if a.dtype is torch.float64 else torch.float32
        g, h = (t.contiguous().to(values).numpy() for t in (a, b))
    cuts = list(parts_for_threads(p.size))
    sums, counts = np.zeros((len(cuts), 7)), np.zeros((len(cuts), 5), np.int64)
    limits = _I64(torch.iinfo(integers).max), _I64(_INFINITE[a.dtype])
    jobs = [
        partial(_gather, (p[cut], q[cut]), (g[cut], h[cut]), limits, sums[t], counts[t])
        for t, cut in enumerate(cuts)
    ]
    at_once(jobs, p.size)
    total = counts.sum(0).tolist()
    if total[2] or not np.isfinite(sums).all():
        return None
    largest: list[float] = counts[:, 3:].max(0).view(np.float64).tolist()
    added_up: list[float] = sums.sum(0).tolist()
    return made(p.size, added_up, largest, [total[0], total[1], 0, 0])
