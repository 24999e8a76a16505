"""A kernel as a function that trains: its gradients are the kernel's own.

Its forward pass runs again inside the backward pass, where autograd goes through it. What
ran is proved at the first call of either.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from roundoff.errors import (
    KernelError,
    RoundoffError,
    UnsupportedError,
    UsageError,
    in_one_line,
)
from roundoff.formats import format_of
from roundoff.intercept.spy import require_event, spy
from roundoff.kernels.kernel import Kernel, check_outputs
from roundoff.kernels.settings import kept
from roundoff.operators.protocol import Outputs, Problem

__all__ = ["Compute", "kernel_function"]

Compute = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool, float], Tensor]
"""Attention of q, k, v, a mask [B | 1, H | 1, N, M], causal, scale."""


def kernel_function(kernel: Kernel) -> Compute:
    """`kernel` as a differentiable function of q, k, v; a mask gets no gradient."""
    run = _Run(kernel)
    function: Any = _Kernel

    def compute(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float
    ) -> Tensor:
        if causal and mask is not None:
            raise UsageError("causal and mask were both given; put the causal part into the mask")
        return function.apply(q, k, v, mask, "causal" if causal else _kind(mask), (run, scale))

    return compute


def _kind(mask: Tensor | None) -> str:
    if mask is None:
        return "none"
    return "boolean" if mask.dtype == torch.bool else "additive"


@dataclass(frozen=True)
class _Run:
    """A kernel on problems, proved once with and once without gradients."""

    kernel: Kernel
    proved: set[str] = field(default_factory=set[str])

    def __call__(self, problem: Problem) -> Outputs:
        kernel, way = self.kernel, "backward" if "dout" in problem.inputs else "forward"
        if reason := kernel.refuses(problem):
            raise UnsupportedError(f"kernel {kernel.name!r} does not take {reason}")
        # A kernel of another layout turns its inputs when it is bound, where autograd must see it.
        with self._calling(), torch.set_grad_enabled(way == "backward"):
            call = kernel.bind(problem)
            if way in self.proved or _profiled():
                return call()
            outputs, events = spy(call)
        require_event(kernel.name, kernel.expects, events)
        check_outputs(kernel, outputs, _expected(problem), problem)
        self.proved.add(way)
        return outputs

    @contextlib.contextmanager
    def _calling(self) -> Generator[None]:
        """Settings of the user's in force and put back; what a library raises in one line."""
        own = kept(self.kernel.settings) if self.kernel.source else contextlib.nullcontext()
        try:
            with own:
                yield
        except RoundoffError:
            raise
        except Exception as error:
            raise KernelError(f"kernel {self.kernel.name!r} raised {in_one_line(error)}") from error


def _profiled() -> bool:
    """Whether somebody profiles already: a second profiler inside would crash the process."""
    autograd: Any = torch.autograd
    return bool(autograd._profiler_enabled())


def _expected(problem: Problem) -> Outputs:
    """Tensors without values in the shapes of the operator's outputs."""
    q, k, v = (problem.inputs[name] for name in "qkv")
    shapes = {
        "out": (*q.shape[:-1], v.shape[-1]), "lse": q.shape[:-1],
        "dq": q.shape, "dk": k.shape, "dv": v.shape,
    }  # fmt: skip
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


class _Kernel(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes the inputs one by one
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, kind: str,
        how: tuple[_Run, float],
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(q, k, v, mask)
        ctx.how = kind, *how
        return how[0](_problem((q, k, v), mask, kind, how[1]))["out"]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        *qkv, mask = ctx.saved_tensors
        kind, run, scale = ctx.how
        with torch.autocast(upstream[0].device.type, enabled=False):
            found = run(_problem(qkv, mask, kind, scale, dout=upstream[0]))
        return found["dq"], found["dk"], found["dv"], None, None, None


def _problem(
    qkv: Any, mask: Tensor | None, kind: str, scale: float, *, dout: Tensor | None = None
) -> Problem:
    inputs: dict[str, Tensor] = {name: x.detach() for name, x in zip("qkv", qkv, strict=True)}
    if mask is not None:
        if mask.requires_grad:
            raise UsageError("the mask requires a gradient, and a kernel has none; detach it")
        inputs["mask"] = mask
    if dout is not None:
        inputs["dout"] = dout
    format = format_of(inputs["q"])
    # The usual scale is none of its own, so that a function without a parameter for it will do.
    own = None if scale == inputs["q"].shape[-1] ** -0.5 else scale
    return Problem(inputs, format, {"mask": kind, "scale": own})
