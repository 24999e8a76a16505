"""Attention by name, as a function that trains: a recipe, a registered kernel, or the user's.

    q [B,H,N,D]    k, v [B,Hk,M,D]    mask [.., N | 1, M]    out [B,H,N,D]

A kernel's gradients are taken as the kernel's own: its forward pass runs again inside the
backward pass, and autograd goes through it there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from roundoff.errors import (
    KernelError,
    RoundoffError,
    UnknownNameError,
    UnsupportedError,
    UsageError,
)
from roundoff.formats import FORMATS, Format, get_format
from roundoff.intercept.spy import require_event, spy
from roundoff.kernels import KERNELS, kernels_of
from roundoff.kernels.declared import Layout
from roundoff.kernels.kernel import Kernel, check_outputs
from roundoff.kernels.settings import kept
from roundoff.kernels.user import user_kernel
from roundoff.operators.attention.api import emulate
from roundoff.operators.attention.catalogue import RECIPES
from roundoff.operators.attention.recipe import Recipe
from roundoff.operators.protocol import Outputs, Problem

__all__ = ["AttentionFunction", "attention_function"]

Compute = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool, float], Tensor]


@dataclass(frozen=True)
class AttentionFunction:
    """Attention [B,H,N,D] x [B,Hk,M,D] -> [B,H,N,D] that gradients flow through.

    `storage` is the format that q, k, v and a bias are rounded to on the way in, and the output
    and its gradient by it; the output comes back in the dtype of q. None: as they are. Hk
    divides H. `mask` is boolean (True: visible) or added, and broadcast to [B,H,N,M]; with
    `causal`, aligned at the upper left, there is none. Autocast is off inside, so that nothing
    is rounded but what the function rounds; where autocast left q, k and v in different
    dtypes, they meet in autocast's.

    >>> flash = attention_function("fa2@bf16")
    >>> q = torch.ones(1, 1, 4, 8, requires_grad=True)
    >>> out = flash(q, q, q, causal=True)
    >>> out.sum().backward()
    >>> out.dtype, q.grad.dtype
    (torch.float32, torch.float32)
    """

    name: str
    compute: Compute
    storage: Format | None = None

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
        scale: float | None = None,
    ) -> Tensor:
        """The output, in the dtype of q.

        Errors: `UsageError` for shapes that do not fit or a mask beside `causal`;
        `UnsupportedError` for what the recipe or kernel cannot do.
        """
        device, given = q.device.type, q.dtype
        meeting = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        with torch.autocast(device, enabled=False):
            q, k, v = self._stored(q, k, v, meeting)
            if mask is not None:
                mask = _whole(mask, (*q.shape[:-1], k.shape[-2]), q.dtype)
            factor = q.shape[-1] ** -0.5 if scale is None else scale
            return self.compute(q, k, v, mask, causal, factor).to(given)

    def _stored(
        self, q: Tensor, k: Tensor, v: Tensor, meeting: torch.dtype | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = self.storage.dtype if self.storage else None
        if dtype is None and len({q.dtype, k.dtype, v.dtype}) > 1:
            if meeting is None:
                raise UsageError(
                    f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; expected one dtype "
                    f"(or a storage format, as in {self.name + '@bf16'!r})"
                )
            dtype = meeting
        return (q, k, v) if dtype is None else (q.to(dtype), k.to(dtype), v.to(dtype))


def attention_function(
    name: str,
    *,
    kind: Literal["kernel", "recipe"] | None = None,
    layout: Layout | None = None,
) -> AttentionFunction:
    """The attention that `name` means: a kernel, a recipe, or `module:function`; maybe `@format`.

    `"fa2@bf16"` is the recipe fa2 on bf16 tensors, in a model of any dtype. Some recipes have the
    name of the kernel that they describe: then `name` is the kernel unless `kind` says "recipe".
    `layout` is that of the user's function. Whether a registered kernel ran is proved at its
    first call.

    Errors: `UnknownNameError`; `UnsupportedError` for a kernel that cannot run here; `UsageError`
    for a format that no tensor has.

    >>> attention_function("fa22")
    Traceback (most recent call last):
    ...
    roundoff.errors.UnknownNameError: unknown attention 'fa22'; did you mean 'fa2'?
    """
    plain, storage = _split(name)
    if kind != "kernel" and plain in RECIPES and (kind == "recipe" or plain not in KERNELS):
        return AttentionFunction(name, _of_recipe(RECIPES[plain]), storage)
    return AttentionFunction(name, _of_kernel(_kernel(plain, kind, layout)), storage)


def _split(name: str) -> tuple[str, Format | None]:
    """The name before, and the format after, the last @."""
    plain, at, format = name.rpartition("@")
    if not at or "/" in format or ":" in format:
        return name, None
    storage = get_format(format)
    if storage.dtype not in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        raise UsageError(f"{name!r}: tensors are stored in bf16, fp16, fp32 or fp64, not {format}")
    return plain, storage


def _kernel(name: str, kind: str | None, layout: Layout | None) -> Kernel:
    if ":" in name:
        kernel = user_kernel(name, "attention", layout=layout)
    elif name in KERNELS:
        kernel = KERNELS[name]
    else:
        kernels = [kernel.name for kernel in kernels_of("attention")]
        known = {"kernel": kernels, "recipe": [*RECIPES]}.get(kind or "", [*kernels, *RECIPES])
        raise UnknownNameError(kind or "attention", name, known)
    if kernel.operator != "attention":
        raise UsageError(f"kernel {name!r} computes {kernel.operator}; expected attention")
    if missing := kernel.missing():
        raise UnsupportedError(f"kernel {name!r} cannot run here: {missing}")
    return kernel


def _whole(mask: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The mask of every query and key, [B | 1, H | 1, N, M]; a bias in the dtype of q."""
    while mask.ndim < 4:
        mask = mask.unsqueeze(0)
    try:
        mask.expand(shape)
        mask = mask.expand(-1, -1, *shape[-2:])
    except RuntimeError:
        raise UsageError(
            f"mask {tuple(mask.shape)}: expected what can be broadcast to {shape}"
        ) from None
    return mask if mask.dtype == torch.bool else mask.to(dtype)


def _of_recipe(recipe: Recipe) -> Compute:
    def compute(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float
    ) -> Tensor:
        wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        if wanted and recipe.backward is None:
            raise UnsupportedError(
                f"recipe {recipe.name!r} has no backward pass, so no model can train with it; "
                "its gradients are not known"
            )
        return emulate(recipe, q, k, v, causal=causal, mask=mask, scale=scale).out

    return compute


def _of_kernel(kernel: Kernel) -> Compute:
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
            first = (str(error).strip().splitlines() or [""])[0]
            raise KernelError(
                f"kernel {self.kernel.name!r} raised {type(error).__name__}: {first}"
            ) from error


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
    format = next(f for f in FORMATS.values() if f.dtype == inputs["q"].dtype)
    # The usual scale is none of its own, so that a function without a parameter for it will do.
    own = None if scale == inputs["q"].shape[-1] ** -0.5 else scale
    return Problem(inputs, format, {"mask": kind, "scale": own})
