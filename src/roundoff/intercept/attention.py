"""Attention by name, as a function that trains: a recipe, a registered kernel, or the user's.

    q [B,H,N,D]    k, v [B,Hk,M,D]    mask [.., N | 1, M]    out [B,H,N,D]

What stands in a model may round on its way in and out; autocast may not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from roundoff.errors import UnknownNameError, UnsupportedError, UsageError
from roundoff.formats import Format, get_format
from roundoff.intercept.kernel_function import Compute, kernel_function
from roundoff.kernels import KERNELS, kernels_of
from roundoff.kernels.declared import Layout
from roundoff.kernels.kernel import Kernel
from roundoff.kernels.user import user_kernel
from roundoff.operators.attention.api import emulate
from roundoff.operators.attention.catalogue import RECIPES
from roundoff.operators.attention.recipe import Recipe

__all__ = ["AttentionFunction", "attention_function"]


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
    return AttentionFunction(name, kernel_function(_kernel(plain, kind, layout)), storage)


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
