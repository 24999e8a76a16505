"""Gradients of an attention kernel through autograd, beside its outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from roundoff.errors import KernelError
from roundoff.kernels.kernel import Call
from roundoff.operators.protocol import Outputs

__all__ = ["leaves_of", "with_gradients"]

NAMES = ("q", "k", "v")


def leaves_of(stored: dict[str, Tensor]) -> list[Tensor]:
    """q, k, v as the kernel takes them; they ask for gradients where there is an upstream one."""
    wanted = "dout" in stored
    return [stored[name].detach().requires_grad_(wanted) for name in NAMES]


def with_gradients(
    name: str, forward: Callable[[], Outputs], leaves: list[Tensor], dout: Tensor | None
) -> Call:
    """The call of `forward`, and of autograd behind it where there is an upstream gradient.

    dq, dk, dv join the outputs. A `KernelError` says if no gradient flows through its output.
    """

    def call() -> Outputs:
        if dout is None:
            return forward()
        with torch.enable_grad():
            outputs = forward()
        if not outputs["out"].requires_grad:
            raise KernelError(
                f"kernel {name!r} returned an output that no gradient flows through; let it "
                "compute with operations that autograd knows, or leave --gradients at no"
            )
        autograd: Any = torch.autograd
        found = autograd.grad(outputs["out"], leaves, dout)
        named = zip(NAMES, found, strict=True)
        return {n: x.detach() for n, x in outputs.items()} | {f"d{n}": x for n, x in named}

    return call
