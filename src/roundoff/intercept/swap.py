"""Swap: the attention of a model is a kernel or a recipe while a context is open."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from roundoff.errors import KernelError
from roundoff.intercept import doors, running
from roundoff.intercept.attention import AttentionFunction, attention_function

__all__ = ["AttentionFunction", "Calls", "attention_function", "swapped"]


@dataclass
class Calls:
    """How often the attention of a swapped model was called."""

    count: int = 0


@contextlib.contextmanager
def swapped(model: nn.Module, attention: AttentionFunction | str) -> Generator[Calls]:
    """Let `attention` be the attention of `model` until the end of the block.

    Contexts of different models may be open at once and closed in any order; those of one model
    close inside out, and the innermost holds. `model` may be wrapped or compiled: a compiled
    one is compiled again at both ends of the block, and leaves its graph at each attention.

    Errors: `KernelError` at the end of the block if attention was never called in it;
    `UnsupportedError` inside for attention that is more than softmax(QK^T * scale + mask) V:
    dropout, soft caps, sinks.

    >>> import torch
    >>> layer = torch.nn.TransformerEncoderLayer(8, 1, batch_first=True, dropout=0.0)
    >>> with swapped(layer, "fa2@bf16") as calls:
    ...     y = layer(torch.ones(1, 4, 8))
    >>> calls.count
    1
    """
    if isinstance(attention, str):
        attention = attention_function(attention)
    calls = Calls()
    with (
        doors.torch_door(),
        doors.transformers_door(model),
        doors.diffusers_door(model),
        running.running(model, _Counted(attention, calls)),
        running.compiled_anew(model),
    ):
        yield calls
    if not calls.count:
        raise KernelError(
            f"{attention.name!r} stood in for the attention of {type(model).__name__}, but no "
            "attention was called; looked for transformers' AttentionInterface, diffusers' "
            "attention processors and torch's scaled_dot_product_attention"
        )


class _Counted:
    """Counts; and lets what the attention itself calls be torch's own."""

    def __init__(self, attention: AttentionFunction, calls: Calls) -> None:
        self.name, self._attention, self._calls = attention.name, attention, calls

    def __call__(self, *qkv: Tensor, **how: Any) -> Tensor:
        self._calls.count += 1
        with running.outside():
            return self._attention(*qkv, **how)
