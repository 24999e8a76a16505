"""Capture: what the attention of a model is called with, kept while a context is open."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from roundoff.errors import KernelError
from roundoff.intercept import doors, running

__all__ = ["AttentionCall", "captured"]


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One call of attention, in copies: q [B,H,N,D], k, v [B,Hk,M,D], of which Hk divides H.

    Shapes and dtypes are those that torch's function was given. `place` is the name of the module
    that called (empty: the model itself). `mask` is boolean (True: visible) or added, and
    broadcast to [B,H,N,M]; with `causal`, aligned at the upper left, there is none.
    """

    place: str
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    causal: bool
    scale: float


@contextlib.contextmanager
def captured(model: nn.Module) -> Generator[list[AttentionCall]]:
    """Keep q, k and v of every attention call of `model` until the end of the block, in order.

    What computes attention stays what it is, bit for bit: the model's own, or what `swapped` put
    there, before it rounds to its storage format. Seen are calls of torch's
    `scaled_dot_product_attention`, those of transformers and diffusers too, and all of a swapped
    model; attention that a model writes out in products is not. A forward pass that a checkpoint
    runs again is seen again. torch's fused encoder layer for inference takes its ordinary way.

    Errors: `KernelError` at the end of the block if no call was seen in it.

    >>> import torch
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, batch_first=True, dropout=0.0)
    >>> with captured(layer) as calls:
    ...     y = layer(torch.ones(1, 5, 8))
    >>> [(call.place, tuple(call.q.shape), call.scale) for call in calls]
    [('self_attn', (1, 2, 5, 4), 0.5)]
    """
    named: Any = model.named_modules
    names: dict[nn.Module, str] = {module: name for name, module in named()}
    calls: list[AttentionCall] = []
    count = 0

    def watch(module: nn.Module, told: running.Told) -> None:
        nonlocal count
        count += 1
        calls.append(
            AttentionCall(
                names[module],
                *(x.detach().clone() for x in (told.q, told.k, told.v)),
                mask=None if told.mask is None else told.mask.detach().clone(),
                causal=told.causal,
                scale=told.q.shape[-1] ** -0.5 if told.scale is None else told.scale,
            )
        )

    with doors.torch_door(), running.watching(model, watch), running.compiled_anew(model):
        yield calls
    if not count:
        raise KernelError(
            f"no attention of {type(model).__name__} was captured; expected calls of torch's "
            "scaled_dot_product_attention (of a model of transformers: attn_implementation='sdpa')"
        )
