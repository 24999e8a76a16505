"""Attention in Python: `golden` and `emulate` on tensors [batch, heads, length, head_dim]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from roundoff.errors import UsageError
from roundoff.formats import FORMATS, Format
from roundoff.operators.attention import golden as float64
from roundoff.operators.attention.call import Attention, Call
from roundoff.operators.attention.catalogue import RECIPES
from roundoff.operators.attention.engine import attend
from roundoff.operators.attention.function import attend_with_gradients
from roundoff.operators.attention.masks import Mask
from roundoff.operators.attention.recipe import Recipe

__all__ = ["emulate", "golden"]


def golden(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    scale: float | None = None,
    rows: Sequence[int] | Tensor | None = None,
) -> Attention:
    """Attention in float64: `.out` [B,H,R,Dv] and `.lse` [B,H,R] of the query `rows` (None: all).

    q is [B,H,N,D], k [B,Hk,M,D], v [B,Hk,M,Dv] of any float dtype; Hk divides H. `causal`
    aligns at the upper left, as torch does; `mask` [B|1,H|1,N,M] is boolean (True: visible)
    or added to the scaled scores. A fully masked row gives 0 and -inf. NaN and infinity go
    through. Sampled rows cost O(rows x M x D) and are exact rows of the whole result.

    Errors: `UsageError` for shapes that do not fit, rows that q has not, or causal together with
    a mask.

    >>> q = torch.ones(1, 1, 4, 8)
    >>> golden(q, q, q, causal=True, rows=[0, 3]).lse.exp().round(decimals=3).tolist()
    [[[16.919, 67.675]]]
    """
    call = _call((q, k, v), causal, mask, scale)
    if rows is not None:
        call = replace(call, rows=_rows(rows, q))
    return float64.golden(call, condition=False)[0]


def emulate(
    recipe: Recipe | str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Attention:
    """Attention as the kernel that `recipe` describes computes it, rounded at each of its sites.

    Shapes, masks and special values as in `golden`; `.out` has q's dtype, `.lse` float32 (or
    float64). The storage format is that of q's dtype: bf16, fp16, fp32 or fp64.

    Gradients flow from `.out` to q, k and v as the kernel computes them, by the recipe's
    `backward`, so that a recipe can stand in a model and train; a mask gets none, and neither
    do gradients of gradients.

    Errors: `UnknownNameError` for a recipe that is not in the catalogue, `UnsupportedError` when
    a gradient is asked of a recipe without `backward`; otherwise as `golden`.

    >>> q = torch.randn(1, 2, 64, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    >>> flash, exact = emulate("fa2", q, q, q), golden(q, q, q)
    >>> (flash.out - exact.out).abs().max().item() < 2**-6
    True
    >>> q.requires_grad_()
    tensor(...)
    >>> emulate("fa2", q, q, q).out.sum().backward()
    >>> q.grad.dtype
    torch.bfloat16
    """
    recipe = RECIPES[recipe] if isinstance(recipe, str) else recipe
    call = _call((q, k, v), causal, mask, scale)
    storage = _storage(q)
    if mask is not None and mask.requires_grad:
        raise UsageError("the mask requires a gradient, and a recipe has none for it; detach it")
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return attend_with_gradients(recipe, call, (q, k, v), storage)
    result = attend(recipe.forward, call, storage)
    return replace(result, out=result.out.to(q.dtype))


def _call(
    qkv: tuple[Tensor, Tensor, Tensor], causal: bool, mask: Tensor | None, scale: float | None
) -> Call:
    q, k, v = qkv
    given = dict(zip("qkv", qkv, strict=True)) | ({} if mask is None else {"mask": mask})
    for name, x in given.items():
        if not isinstance(x, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"{name} is a {type(x).__name__}; expected a torch tensor")
    _check(q, k, v)
    if causal and mask is not None:
        raise UsageError("causal and mask were both given; put the causal part into the mask")
    kind = "causal" if causal else "none"
    if mask is not None:
        _check_mask(mask, q, k)
        kind = "boolean" if mask.dtype == torch.bool else "additive"
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    q, k, v = (x.detach().to(wide) for x in qkv)
    rows = torch.arange(q.shape[-2], device=q.device)
    factor: float = q.shape[-1] ** -0.5 if scale is None else scale
    return Call(q, k, v, Mask(kind, tensor=mask), factor, rows)


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not q.ndim == k.ndim == v.ndim == 4:
        raise UsageError(f"{shapes}: expected three tensors [batch, heads, length, head_dim]")
    if q.shape[-1] != k.shape[-1] or q.shape[-1] == 0:
        raise UsageError(f"{shapes}: expected one head_dim of at least 1 for q and k")
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0]:
        raise UsageError(f"{shapes}: expected one batch, and as many keys as values")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise UsageError(f"{shapes}: expected query heads to be a multiple of key heads")


def _check_mask(mask: Tensor, q: Tensor, k: Tensor) -> None:
    whole = *q.shape[:3], k.shape[2]
    fits = mask.ndim == 4 and all(
        m == n or (m == 1 and at < 2)
        for at, (m, n) in enumerate(zip(mask.shape, whole, strict=True))
    )
    if not fits:
        raise UsageError(
            f"mask {tuple(mask.shape)}: expected [batch or 1, heads or 1, {whole[2]}, {whole[3]}]"
        )


def _rows(rows: Sequence[int] | Tensor, q: Tensor) -> Tensor:
    found = torch.as_tensor(rows, dtype=torch.long, device=q.device)
    if found.ndim != 1:
        raise UsageError(f"rows {rows}: expected a sequence of row numbers, such as [3, 500]")
    wrong = found[(found < 0) | (found >= q.shape[-2])]
    if wrong.numel():
        raise UsageError(f"row {int(wrong[0])}: q has {q.shape[-2]} rows, from 0 on")
    return found


def _storage(q: Tensor) -> Format:
    for format in FORMATS.values():
        if format.dtype == q.dtype:
            return format
    raise UsageError(f"q has dtype {q.dtype}; expected bfloat16, float16, float32 or float64")
