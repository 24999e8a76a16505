"""The choices of `roundoff.sites` carried out on tensors: rounding, quantising, summing.

Values travel in a carrying dtype (float32, or float64 where a site asks for more); a
format is where they are rounded to, not the dtype that holds them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator
from typing import Any, Literal

import torch
from torch import Tensor

from roundoff.errors import UnsupportedError
from roundoff.formats import FORMATS, Format, round_to
from roundoff.sites import Accumulator, Element, Quantizer

__all__ = [
    "carrier",
    "divide",
    "holds",
    "magnitude",
    "matmul",
    "plain_arithmetic",
    "put",
    "row_sum",
    "settled",
]

_CARRIERS = {torch.float32: FORMATS["fp32"], torch.float64: FORMATS["fp64"]}
LANES = 64
MOST_COMPARED = 2**16
ALIGNED = 2**22
"""Products held at a time where a chunk's terms are aligned."""
_LIBRARY_DTYPES = (torch.bfloat16, torch.float16)


@contextlib.contextmanager
def plain_arithmetic(device: torch.device) -> Generator[None]:
    """Arithmetic as written: no autocast, no TF32 or bf16 inside fp32 products, no gradients."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False), _full_products():
        yield


@contextlib.contextmanager
def _full_products() -> Generator[None]:
    """Products of fp32 tensors in fp32.

    Only what is narrowed is set, and put back: torch refuses to be asked through its older
    interface once the newer one was used, and a setting that is inherited should stay so.
    """
    backends: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cuda)
    switches = [b.matmul for b in backends if hasattr(getattr(b, "matmul", None), "fp32_precision")]
    narrowed = [(s, s.fp32_precision) for s in switches if s.fp32_precision not in ("ieee", "none")]
    for switch, _ in narrowed:
        switch.fp32_precision = "ieee"
    try:
        with contextlib.nullcontext() if switches else _legacy_full_products():
            yield
    finally:
        for switch, before in narrowed:
            switch.fp32_precision = before


@contextlib.contextmanager
def _legacy_full_products() -> Generator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def settled(element: Element | Quantizer) -> Format:
    """The format that a resolved recipe's element is, or that its quantiser rounds to."""
    if isinstance(element, Quantizer):
        element = element.element
    if not isinstance(element, Format):
        raise TypeError(f"{element!r} is no format; resolve the recipe before running it")
    return element


def carrier(format: Format) -> torch.dtype:
    """The narrowest dtype that carries all values of `format`: float32 or float64."""
    return torch.float32 if holds(FORMATS["fp32"], format) else torch.float64


def holds(wide: Format, format: Format) -> bool:
    """Whether every value of `format` is one of `wide`, but for infinities and NaN."""
    return (
        wide.mantissa_bits >= format.mantissa_bits
        and wide.emin <= format.emin
        and wide.emax >= format.emax
    )


def magnitude(x: Tensor) -> float:
    """The largest size of an element; NaN if there is one, 0 if there is none.

    Rows are taken some at a time, since torch compares 16-bit numbers in a float32 copy.
    """
    parts: list[Tensor] = list(torch.split(x, MOST_COMPARED, dim=-2)) if x.numel() else []
    ends = [end for part in parts for end in torch.aminmax(part)]
    largest = torch.stack(ends).abs().amax() if ends else x.new_zeros(())
    return float(largest)


def put(x: Tensor, choice: Element | Quantizer, *, mode: Any = "nearest") -> Tensor:
    """Round `x` to a format or through a quantiser; free where the carrier is no wider.

    In a format without infinities, finite values that are too large become the largest
    number, as in the conversions of hardware. An infinity stays one: -inf marks a hidden
    key, and +inf must not vanish.
    """
    if isinstance(choice, Quantizer):
        return _quantize(x, choice)
    format = settled(choice)
    if holds(format, _CARRIERS[x.dtype]):
        return x
    if format.infinities:
        return round_to(x, format, mode=mode)
    return _saturated(x, format, mode)


def _saturated(x: Tensor, format: Format, mode: Any = "nearest") -> Tensor:
    rounded = round_to(x, format, mode=mode, overflow="saturate")
    return torch.where(x.isinf(), x, rounded)


def _quantize(x: Tensor, how: Quantizer) -> Tensor:
    format = settled(how.element)
    if how.factor != 1.0:
        return _quantize(x * how.factor, dataclasses.replace(how, factor=1.0)) / how.factor
    if how.scale == "none":
        return _flushed(put(x, format), how)
    if how.scale == "fixed":
        return _flushed(_saturated(x, format), how)
    if not x.numel():
        return x
    if how.scale == "block" and how.block is None:
        raise UnsupportedError(f"{how}: a quantiser by block needs the block's length")
    level = _level(x.abs().amax(), how) if how.two_level else x.new_ones(())
    if how.scale == "tensor":
        return _scaled(x, x.abs().amax(), level, how)
    pieces: list[Tensor] = list(torch.split(x, how.block or x.shape[how.axis], dim=how.axis))
    over = (how.axis,) if how.scale == "line" else (-2, -1)
    scaled = [_scaled(p, p.abs().amax(dim=over, keepdim=True), level, how) for p in pieces]
    return torch.cat(scaled, dim=how.axis)


def _level(largest: Tensor, how: Quantizer) -> Tensor:
    """The scale of all scales: what makes the largest of them the maximum of their format."""
    if isinstance(how.scales, str):
        raise UnsupportedError(f"{how}: scales that are powers of two have no second level")
    top = settled(how.element).max * settled(how.scales).max
    return put(_or_one(largest / top), FORMATS["fp32"])


def _scaled(x: Tensor, largest: Tensor, level: Tensor, how: Quantizer) -> Tensor:
    format = settled(how.element)
    if how.scales in ("power", "power-up"):
        factor = _power_of_two(largest, format, up=how.scales == "power-up")
    else:
        factor = put(largest / format.max / level, how.scales) * level
    factor = _or_one(factor)
    return _flushed(_saturated(x / factor, format), how) * factor


def _or_one(factor: Tensor) -> Tensor:
    return torch.where(factor > 0, factor, torch.ones_like(factor))


def _power_of_two(largest: Tensor, format: Format, *, up: bool) -> Tensor:
    """The scale of a block as e8m0 stores it: 2^-127 at least; NaN and infinity stay."""
    exponent = torch.frexp(largest)[1].to(largest.dtype) - 1 - format.emax
    factor = torch.exp2(exponent.clamp(min=-127.0).double()).to(largest.dtype)
    if up:
        factor = torch.where(largest > factor * format.max, 2 * factor, factor)
    return torch.where(largest.isfinite(), factor, largest)


def _flushed(x: Tensor, how: Quantizer) -> Tensor:
    """`x` with zeros (of its sign) for what is no normal number, if the quantiser flushes."""
    if not how.flush:
        return x
    return torch.where(x.abs() < settled(how.element).smallest_normal, x * 0.0, x)


def matmul(a: Tensor, b: Tensor, total: Accumulator, *, onto: Tensor | None = None) -> Tensor:
    """`onto + a @ b`, with the running sum carried as `total` says.

    Without `chunk` the product is rounded once and then added to `onto` in a second
    rounding; with it, both happen every `chunk` terms of the inner axis. In the order `fused`
    the product's sums start from `onto`, as a GEMM with beta = 1 does, and are rounded once.
    """
    if total.flushed is not None:
        part = matmul(a, b, dataclasses.replace(total, flushed=None))
        return part if onto is None else put(onto + part, total.flushed)
    inner = a.shape[-1]
    chunk = total.chunk or max(inner, 1)
    starts = range(0, max(inner, 1), chunk)
    for start in reversed(starts) if total.order == "reversed" else starts:
        left, right = a[..., start : start + chunk], b[..., start : start + chunk, :]
        if total.aligned:
            onto = _aligned(left, right, total, onto)
            continue
        if onto is not None and total.order == "fused":
            onto = put(_added_onto(onto, left, right), total.format, mode=total.rounding)
            continue
        part = _product(left, right, total if onto is None else total.inner)
        onto = part if onto is None else put(onto + part, total.format, mode=total.rounding)
    assert onto is not None
    return onto


def _product(a: Tensor, b: Tensor, total: Accumulator) -> Tensor:
    format = settled(total.format)
    if total.order == "native" and not holds(format, _CARRIERS[a.dtype]):
        if format.dtype not in _LIBRARY_DTYPES:
            raise UnsupportedError(
                f"torch has no matrix product of {format.name} tensors here; "
                'choose another order than "native", or a storage format of bf16 or fp16'
            )
        return (a.to(format.dtype) @ b.to(format.dtype)).to(a.dtype)
    if total.order == "reversed":
        a, b = a.flip(-1), b.flip(-2)
    return put(a @ b, format, mode=total.rounding)


def _aligned(a: Tensor, b: Tensor, total: Accumulator, onto: Tensor | None) -> Tensor:
    """`onto + a @ b` of one chunk as a tensor core adds it; `Accumulator.aligned` tells how.

    In float64, where the products and the sum of a chunk are exact for terms of up to 26 bits.
    """
    format, rows = settled(total.format), max(1, ALIGNED // max(1, b.numel()))
    b, parts = b.double().transpose(-1, -2).unsqueeze(-3), list[Tensor]()
    for start in range(0, max(a.shape[-2], 1), rows):
        terms = a[..., start : start + rows, :].double().unsqueeze(-2) * b
        if onto is not None:
            terms = torch.cat([terms, onto[..., start : start + rows, :, None].double()], -1)
        largest = (
            terms.abs().amax(-1, keepdim=True) if terms.shape[-1] else terms.sum(-1)[..., None]
        )
        unit = torch.exp2((torch.frexp(largest)[1] - 1 - format.mantissa_bits).double())
        cut = torch.where(terms.isfinite(), (terms / unit).trunc() * unit, terms)
        parts.append(put(cut.sum(-1), format, mode=total.rounding))
    return torch.cat(parts, -2).to(a.dtype)


def _added_onto(onto: Tensor, a: Tensor, b: Tensor) -> Tensor:
    flat = [x.flatten(0, -3) for x in (onto, a, b)]
    return torch.baddbmm(flat[0], flat[1], flat[2]).view(onto.shape)


def row_sum(p: Tensor, total: Accumulator) -> Tensor:
    """The sum over the last axis, kept as an axis of length 1."""
    if total.chunk is not None:
        return _chunked_sum(p, total)
    if total.order in ("lanes", "vector"):
        assert isinstance(total.lanes, int), "resolve the recipe before running it"
        summed = _lane_sum(p, total.lanes, tail_first=total.order == "vector")
    else:
        summed = _halved(p.flip(-1) if total.order == "reversed" else p)
    return put(summed, total.format, mode=total.rounding)


def _halved(p: Tensor) -> Tensor:
    """The sum in our own order, which does not depend on the machine; `Accumulator` tells it."""
    if not p.shape[-1]:
        return p.new_zeros((*p.shape[:-1], 1))
    p = torch.nn.functional.pad(p, (0, -p.shape[-1] % LANES), value=-0.0)
    while p.shape[-1] > 1:
        width = p.shape[-1]
        kept = -(-width // (2 * LANES)) * LANES if width > LANES else width // 2
        lower = p[..., :kept].clone()
        lower[..., : width - kept] += p[..., kept:]
        p = lower
    return p


def _chunked_sum(p: Tensor, total: Accumulator) -> Tensor:
    assert total.chunk is not None
    parts: list[Tensor] = list(torch.split(p, total.chunk, dim=-1))
    running = p.new_zeros((*p.shape[:-1], 1))
    for part in reversed(parts) if total.order == "reversed" else parts:
        term = put(_halved(part), total.format, mode=total.rounding)
        running = put(running + term, total.format, mode=total.rounding)
    return running


def divide(
    x: Tensor, total: Tensor, by: Literal["division", "reciprocal"], format: Element
) -> Tensor:
    """x over l, by one rounded division or by l's rounded reciprocal; 0 where l is 0."""
    y = x / total if by == "division" else x * put(1.0 / total, format)
    y, empty = put(y, format), total == 0
    # To fill takes longer than to divide; on other devices, so does the question.
    asked = y.device.type == "cpu" and not torch.compiler.is_compiling()
    return y if asked and not bool(empty.any()) else y.masked_fill_(empty, 0.0)


def _lane_sum(p: Tensor, lanes: int, *, tail_first: bool) -> Tensor:
    if tail_first and p.shape[-1] < lanes:
        lanes = 1
    whole = p.shape[-1] // lanes * lanes
    running = p.new_zeros((*p.shape[:-1], lanes))
    for start in range(0, whole, lanes):
        running = running + p[..., start : start + lanes]
    if tail_first:
        running[..., : p.shape[-1] - whole] += p[..., whole:]
        whole = p.shape[-1]
    while running.shape[-1] > 1:
        half = running.shape[-1] // 2
        running = running[..., :half] + running[..., half:]
    for at in range(whole, p.shape[-1]):
        running = running + p[..., at : at + 1]
    return running
