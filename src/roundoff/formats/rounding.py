"""Rounding tensors to a format, exactly and once."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from roundoff.errors import UsageError
from roundoff.formats import _torch
from roundoff.formats._plan import FLOAT32, FLOAT64, Mode, Overflow, Plan, make_plan
from roundoff.formats.catalogue import get_format
from roundoff.formats.format import Format
from roundoff.registry import is_installed

__all__ = ["Mode", "Overflow", "round_to"]

Twin = Callable[[Tensor, Tensor, Plan, int], None]

_CARRIERS = {torch.float32: FLOAT32, torch.float64: FLOAT64}
_plans: dict[tuple[Format, torch.dtype, str, str], Plan | None] = {}
_fast: list[Twin] = []


def round_to(
    x: Tensor,
    format: str | Format,
    *,
    mode: Mode = "nearest",
    overflow: Overflow = "inf",
    generator: torch.Generator | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Every element of `x` rounded to a number of `format`, in the dtype of `x`.

    `x` is float32 or float64, of any shape and on any device. Each element is rounded once,
    straight to the format, subnormals included, whatever the flush-to-zero state of the CPU and
    also inside `torch.compile`. The result carries no gradient.

    `mode`: `"nearest"` (ties to even), `"nearest-away"` (ties away from zero), `"toward-zero"`,
    `"up"`, `"down"`, or `"stochastic"`: up or down by chance, so that the mean is `x`, to
    2**-32 of the spacing. That takes 64 bits from `generator` (which may live on another device
    than `x`); an element's chance depends on them and on its index alone, so one state of the
    generator gives one result on all devices and for any number of threads.

    Special values:

    - NaN stays NaN, also where the format has none.
    - -0 keeps its sign, and so does what is rounded to zero, unless the format has no -0 (fnuz).
    - A value that would round beyond `format.max`, were there more exponents, overflows.
      With `overflow="inf"` it becomes infinity, or NaN in a format without infinities, or
      `max` in one that has no NaN either. A *finite* value stays at `max` where the mode rounds
      toward zero: always in `"toward-zero"`, above zero in `"down"`, below zero in `"up"`.
      With `overflow="saturate"` it becomes `max`, and infinity does too.
    - A format that holds all of `x`'s dtype and more changes nothing.

    `out` takes the result and is returned; it may be `x`. Raises `UsageError` for another dtype,
    for a format that reaches beyond the dtype of `x` in one direction only, for an `out` of
    another shape, dtype or device, and for a missing or needless `generator`.

    >>> x = torch.tensor([1.0, 1.00390625, 1e39, -1e-45])
    >>> round_to(x, "bf16")
    tensor([1., 1., inf, -0.])
    >>> round_to(torch.tensor([1.1, 500.0]), "e4m3fn", mode="up", overflow="saturate")
    tensor([  1.1250, 448.0000])
    """
    if not isinstance(x, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"round_to takes a tensor, not a {type(x).__name__}")
    if x.dtype not in _CARRIERS:
        raise UsageError(f"round_to takes float32 or float64, not {x.dtype}; convert x first")
    if out is not None and (out.shape, out.dtype, out.device) != (x.shape, x.dtype, x.device):
        raise UsageError(
            f"out is {tuple(out.shape)} {out.dtype} on {out.device}; "
            f"x is {tuple(x.shape)} {x.dtype} on {x.device}"
        )
    plan = _plan(format, x.dtype, mode, overflow)
    key = _key(mode, generator)
    if x.requires_grad:
        x = x.detach()
    if plan is None:
        return x.clone() if out is None else out.copy_(x)
    if _is_foreign(x) or (out is not None and _is_foreign(out)):
        result = _torch.rounded(x, plan, key)
        return result if out is None else out.copy_(result)
    source = x.contiguous()
    if out is None or not _is_ready(source, out):
        result = torch.empty_like(source)
        _twin()(source, result, plan, key)
        return result if out is None else out.copy_(result)
    _twin()(source, out.detach(), plan, key)
    return out


def _plan(format: str | Format, dtype: torch.dtype, mode: Mode, overflow: Overflow) -> Plan | None:
    format = get_format(format)
    if torch.compiler.is_compiling():  # a table that grows would be a guard that fails
        return make_plan(format, _CARRIERS[dtype], mode, overflow)
    at = (format, dtype, mode, overflow)
    if at not in _plans:
        _plans[at] = make_plan(format, _CARRIERS[dtype], mode, overflow)
    return _plans[at]


def _key(mode: Mode, generator: torch.Generator | None) -> int:
    if (mode == "stochastic") != (generator is not None):
        raise UsageError(
            "stochastic rounding needs generator=torch.Generator()"
            if generator is None
            else f"mode {mode!r} draws nothing, so it takes no generator"
        )
    if generator is None:
        return 0
    limit = torch.iinfo(torch.int64).max
    drawn = torch.randint(
        -limit, limit, (), dtype=torch.int64, device=generator.device, generator=generator
    )
    return int(drawn.item())


def _is_foreign(x: Tensor) -> bool:
    """Whether only torch can compute with `x`: another device, a subclass, a compiler's proxy."""
    return (
        torch.compiler.is_compiling()
        or x.device.type != "cpu"
        or type(x) not in (Tensor, torch.nn.Parameter)
    )


def _is_ready(source: Tensor, out: Tensor) -> bool:
    """Whether `out` can be written while `source` is read: the same memory, or disjoint."""
    if not out.is_contiguous():
        return False
    same_storage = source.untyped_storage().data_ptr() == out.untyped_storage().data_ptr()
    return not same_storage or source.data_ptr() == out.data_ptr()


def _twin() -> Twin:
    if not _fast:
        if is_installed("numba"):
            from roundoff.formats._numba import round_into  # noqa: PLC0415 - slow to import

            _fast.append(round_into)
        else:
            logging.getLogger("roundoff").warning(
                "numba is not installed: rounding gives the same bits, about 50 times slower; "
                "install it with: pip install 'roundoff[fast]'"
            )
            _fast.append(_torch.round_into)
    return _fast[0]
