"""Calls of attention to test with."""

import math

import pytest
import torch

from roundoff.formats import FORMATS
from roundoff.operators.attention.call import Call
from roundoff.operators.attention.masks import make_mask
from roundoff.operators.inputs import stored


def build(n=24, m=None, *, mask="none", heads=2, kv_heads=None, d=16, dv=None, batch=1,
          format="bf16", spread=1.0, scale=None, rows=None, seed=0, tensor=None):  # fmt: skip
    """A call of inputs ~ N(0, spread^2), rounded once to `format`."""
    generator = torch.Generator().manual_seed(seed)
    m, dv, kv_heads = m or n, dv or d, kv_heads or heads
    shapes = ((batch, heads, n, d), (batch, kv_heads, m, d), (batch, kv_heads, m, dv))
    q, k, v = (
        stored(torch.randn(s, dtype=torch.float64, generator=generator) * spread, FORMATS[format])
        for s in shapes
    )
    if mask in ("boolean", "additive") and tensor is None:
        seen = torch.rand((1, heads, n, m), generator=generator) < 0.75
        seen[..., n // 2, :] = False
        tensor = seen if mask == "boolean" else torch.where(seen, torch.randn(seen.shape, generator=generator).bfloat16().float(), -math.inf)  # fmt: skip
    rows = torch.arange(n) if rows is None else torch.as_tensor(rows)
    return Call(q, k, v, make_mask(mask, tensor), d**-0.5 if scale is None else scale, rows)


@pytest.fixture
def make_call():
    return build
