"""A recipe as a function that autograd knows: its forward and its backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from roundoff.formats import Format
from roundoff.operators.attention.backward import Forward, attend_keeping, differentiate
from roundoff.operators.attention.call import Attention, Call
from roundoff.operators.attention.recipe import Recipe

__all__ = ["attend_with_gradients"]


def attend_with_gradients(
    recipe: Recipe, call: Call, leaves: tuple[Tensor, Tensor, Tensor], storage: Format
) -> Attention:
    """Attention of all rows, whose `out` carries gradients to the tensors q, k, v of `leaves`.

    `call` holds their values in a carrying dtype. `.out` has the dtype of q; `.lse` and the
    counts carry no gradient. A recipe without a backward pass raises `UnsupportedError` when a
    gradient is asked for, and there are no gradients of gradients.
    """
    function: Any = _Emulated
    out, lse, rescales, rescaled_by = function.apply(*leaves, recipe, call, storage)
    return Attention(out, lse, rescales, rescaled_by)


class _Emulated(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes the inputs one by one
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, recipe: Recipe, call: Call, storage: Format
    ) -> tuple[Tensor | None, ...]:
        result, forward = attend_keeping(recipe, call, storage)
        ctx.how = recipe, storage, call.q.dtype, (call.mask, call.scale, call.rows)
        ctx.save_for_backward(q, k, v, forward.stored, forward.exact, forward.lse)
        ctx.mark_non_differentiable(result.lse, result.rescales, result.rescaled_by)
        return result.out.to(q.dtype, copy=True), result.lse, result.rescales, result.rescaled_by

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        dout = upstream[0]
        recipe, storage, wide, rest = ctx.how
        q, k, v, stored, exact, lse = ctx.saved_tensors
        call = Call(*(x.detach().to(wide) for x in (q, k, v)), *rest)
        found = differentiate(recipe, call, Forward(stored, exact, lse), dout.to(wide), storage)
        pairs = zip((found.dq, found.dk, found.dv), (q, k, v), strict=True)
        return (*(gradient.to(x.dtype) for gradient, x in pairs), None, None, None)
