"""Q, K and V on their way into the engine: carrying dtype, rotation, quantisers, scale, groups."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from roundoff.operators.arithmetic import put
from roundoff.operators.attention.call import Call
from roundoff.operators.attention.recipe import Recipe
from roundoff.operators.exponentials import LOG2_E
from roundoff.operators.inputs import randn
from roundoff.sites import Quantizer

__all__ = ["log2e_in_scale", "prepare", "rotation", "shared_heads", "smoothed_away"]


def prepare(recipe: Recipe, call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Q at the call's rows, and K, V, as the products take them.

    Quantisers see whole tensors, so rows are picked after them. Heads that share keys get
    their own copy.
    """
    q, k, v = call.q, call.k, call.v
    carrier = torch.float64 if recipe.wide or q.dtype == torch.float64 else torch.float32
    q, k, v = q.to(carrier), k.to(carrier), v.to(carrier)
    if recipe.operands.smooth and k.shape[-2]:
        k = k - k.mean(-2, keepdim=True)
    if recipe.operands.rotate:
        turn = rotation(q.shape[-1]).to(q)
        q, k = q @ turn, k @ turn
    how = recipe.operands
    q, k, v = _quantized(q, how.q), _quantized(k, how.k), _quantized(v, how.v)
    if not torch.equal(call.rows, torch.arange(q.shape[-2], device=call.rows.device)):
        q = q[..., call.rows, :]
    q, k = _prescaled(recipe, q, k, call.scale)
    return q, shared_heads(k, q.shape[1]), shared_heads(v, q.shape[1])


def smoothed_away(recipe: Recipe, call: Call, lse: Tensor) -> Tensor:
    """What `smooth` took from the scores of the call's rows, [B,H,R] or 0, in the LSE's dtype."""
    if not recipe.operands.smooth or not call.k.shape[-2]:
        return torch.zeros_like(lse)
    mean = shared_heads(call.k.to(lse).mean(-2, keepdim=True), call.q.shape[1])
    return (call.q[..., call.rows, :].to(lse) * mean).sum(-1) * call.scale


def _quantized(x: Tensor, quantizer: Quantizer | None) -> Tensor:
    return x if quantizer is None else put(x, quantizer)


def _prescaled(recipe: Recipe, q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    how = recipe.prescale
    scale = scale * log2e_in_scale(recipe)
    if how.operands == "q":
        return put(q * scale, how.format), k
    if how.operands == "k":
        return q, put(k * scale, how.format)
    if how.operands == "qk":
        root = math.sqrt(abs(scale))
        return put(q * math.copysign(root, scale), how.format), put(k * root, how.format)
    return q, k


def log2e_in_scale(recipe: Recipe) -> float:
    """log2(e) where the recipe multiplies it into the scale, and 1 elsewhere."""
    how = recipe.exponential
    return LOG2_E if how.base == "2" and how.log2e == "scale" else 1.0


def shared_heads(x: Tensor, heads: int) -> Tensor:
    """Repeat key or value heads so that each query head has its own (grouped-query attention)."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def rotation(dim: int) -> Tensor:
    """A random orthogonal matrix [dim, dim]: signs times a Hadamard matrix (QR where dim is
    no power of two), the same for every call, in float64."""
    generator = torch.Generator().manual_seed(dim)
    if dim & (dim - 1):
        gaussian = randn((dim, dim), generator)
        linalg: Any = torch.linalg
        return linalg.qr(gaussian)[0]
    signs = torch.randint(0, 2, (dim,), device="cpu", generator=generator).double() * 2 - 1
    hadamard = torch.ones(1, 1, dtype=torch.float64, device="cpu")
    while hadamard.shape[0] < dim:
        hadamard = torch.cat(
            [torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)]
        )
    return signs[:, None] * hadamard / math.sqrt(dim)
