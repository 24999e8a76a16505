"""Calls of attention to test with."""

import math
from dataclasses import dataclass

import pytest
import torch

from roundoff.formats import FORMATS
from roundoff.operators.attention.call import Call
from roundoff.operators.attention.masks import make_mask
from roundoff.operators.inputs import stored


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a call should be like; inputs ~ N(0, spread^2)."""

    n: int = 24
    m: int | None = None
    mask: str = "none"
    heads: int = 2
    kv_heads: int | None = None
    d: int = 16
    dv: int | None = None
    batch: int = 1
    format: str = "bf16"
    spread: float = 1.0
    scale: float | None = None
    rows: list[int] | None = None


def build(**given):
    """A call as wanted, its inputs rounded once to the format; masks hide all of row n / 2."""
    w = Wanted(**given)
    generator = torch.Generator().manual_seed(0)
    m, dv, kv_heads = w.m or w.n, w.dv or w.d, w.kv_heads or w.heads
    shapes = (w.heads, w.n, w.d), (kv_heads, m, w.d), (kv_heads, m, dv)
    q, k, v = (
        stored(torch.randn((w.batch, *s), dtype=torch.float64, generator=generator) * w.spread,
               FORMATS[w.format])
        for s in shapes
    )  # fmt: skip
    tensor = None
    if w.mask in ("boolean", "additive"):
        tensor = torch.rand((1, w.heads, w.n, m), generator=generator) < 0.75
        tensor[..., w.n // 2, :] = False
    if w.mask == "additive":
        bias = torch.randn(tensor.shape, generator=generator).bfloat16().float()
        tensor = torch.where(tensor, bias, -math.inf)
    rows = torch.arange(w.n) if w.rows is None else torch.tensor(w.rows)
    scale = w.d**-0.5 if w.scale is None else w.scale
    return Call(q, k, v, make_mask(w.mask, tensor), scale, rows)


@pytest.fixture
def make_call():
    return build
