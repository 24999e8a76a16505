"""The choices of `roundoff.sites` carried out on tensors: rounding, quantising, summing.

Values travel in a carrying dtype (float32, or float64 where a site asks for more); a
format is where they are rounded to, not the dtype that holds them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from roundoff.formats import Format, round_to, to_dtype
from roundoff.sites import Accumulator, Quantizer

__all__ = ["matmul", "plain_arithmetic", "put", "row_sum"]

_WIDTH = {torch.float32: 23, torch.float64: 52}


@contextlib.contextmanager
def plain_arithmetic(device: torch.device) -> Iterator[None]:
    """Arithmetic as written: no autocast, no TF32 or bf16 inside fp32 products, no gradients."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def put(x: Tensor, choice: Format | Quantizer) -> Tensor:
    """Round `x` to a format or through a quantiser; free where the carrier is no wider."""
    if isinstance(choice, Quantizer):
        return _quantize(x, choice)
    if choice.mantissa_bits >= _WIDTH[x.dtype]:
        return x
    return round_to(x, choice)


def _quantize(x: Tensor, quantizer: Quantizer) -> Tensor:
    format = quantizer.element
    assert isinstance(format, Format), "resolve the recipe before running it"
    if quantizer.scale == "none":
        return put(x, format)
    if quantizer.scale == "fixed":
        return round_to(x * quantizer.factor, format, overflow="saturate") / quantizer.factor
    if quantizer.scale == "tensor":
        return _scaled(x, format, x.abs().amax(dim=(-2, -1), keepdim=True))
    assert quantizer.block is not None, "a block quantiser needs its block's length"
    blocks = x.split(quantizer.block, dim=quantizer.axis)
    scaled = [_scaled(b, format, b.abs().amax(dim=(-2, -1), keepdim=True)) for b in blocks]
    return torch.cat(scaled, dim=quantizer.axis)


def _scaled(x: Tensor, format: Format, largest: Tensor) -> Tensor:
    factor = torch.where(largest > 0, largest / format.max, torch.ones_like(largest))
    return round_to(x / factor, format, overflow="saturate") * factor


def matmul(a: Tensor, b: Tensor, total: Accumulator, *, onto: Tensor | None = None) -> Tensor:
    """`onto + a @ b`, with the running sum carried as `total` says.

    Without `chunk` the product is rounded once and then added to `onto` in a second
    rounding; with it, both happen every `chunk` terms of the inner axis.
    """
    format = _format(total)
    inner = a.shape[-1]
    chunk = total.chunk or max(inner, 1)
    starts = range(0, max(inner, 1), chunk)
    if total.order == "reversed":
        starts = reversed(starts)
    for start in starts:
        part = _product(a[..., start : start + chunk], b[..., start : start + chunk, :], total)
        onto = part if onto is None else put(onto + part, format)
    assert onto is not None
    return onto


def _product(a: Tensor, b: Tensor, total: Accumulator) -> Tensor:
    format = _format(total)
    if total.order == "native" and format.mantissa_bits < _WIDTH[a.dtype]:
        return (to_dtype(a, format) @ to_dtype(b, format)).to(a.dtype)
    if total.order == "reversed":
        a, b = a.flip(-1), b.flip(-2)
    return put(a @ b, format)


def row_sum(p: Tensor, total: Accumulator) -> Tensor:
    """The sum over the last axis, kept as an axis of length 1."""
    format = _format(total)
    if total.chunk is not None:
        return _chunked_sum(p, total.chunk, format, reverse=total.order == "reversed")
    if total.order == "lanes":
        return put(_lane_sum(p, total.lanes), format)
    if total.order == "reversed":
        p = p.flip(-1)
    return put(p.sum(-1, keepdim=True), format)


def _chunked_sum(p: Tensor, chunk: int, format: Format, *, reverse: bool) -> Tensor:
    parts = p.split(chunk, dim=-1)
    running: Tensor | None = None
    for part in reversed(parts) if reverse else parts:
        term = put(part.sum(-1, keepdim=True), format)
        running = term if running is None else put(running + term, format)
    return p.sum(-1, keepdim=True) if running is None else running


def _lane_sum(p: Tensor, lanes: int) -> Tensor:
    whole = p.shape[-1] // lanes * lanes
    running = p.new_zeros((*p.shape[:-1], lanes))
    for start in range(0, whole, lanes):
        running = running + p[..., start : start + lanes]
    while running.shape[-1] > 1:
        half = running.shape[-1] // 2
        running = running[..., :half] + running[..., half:]
    for start in range(whole, p.shape[-1]):
        running = running + p[..., start : start + 1]
    return running


def _format(total: Accumulator) -> Format:
    assert isinstance(total.format, Format), "resolve the recipe before running it"
    return total.format
