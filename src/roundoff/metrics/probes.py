"""Probes: what is kept of tensors that pass by, as numbers that can be joined.

A probe has no state of its own. Its state is a float64 tensor [..., columns] on the device of
what it reads, so that nothing waits for that device, and states of blocks, micro-batches and
processes meet by `merge` in any order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from roundoff.errors import UnknownNameError, UsageError
from roundoff.formats import Format, get_format
from roundoff.metrics.blocks import blocks

__all__ = ["FORMAT_PROBES", "PROBES", "Probe", "observe", "tensor_probe"]

X = TypeVar("X")
BLOCK = {"cpu": 2**18}
"""Elements that are read at a time; elsewhere as many as `LARGE`."""
LARGE = 2**24


@dataclass(frozen=True)
class Probe(Generic[X]):
    """A measure of what passes by: `read` makes a state of one x, `values` numbers of a state.

    The last `peaks` columns of a state meet by their maximum, the others by their sum; a NaN
    stays. `values` gives tensors without the column axis, by name.
    """

    name: str
    doc: str
    read: Callable[[X], Tensor]
    values: Callable[[Tensor], dict[str, Tensor]]
    peaks: int = 0

    def init(self) -> Tensor | None:
        """The state in which nothing was seen."""
        return None

    def update(self, state: Tensor | None, x: X) -> Tensor:
        """The state after x."""
        read = self.read(x)
        return read if state is None else self.merge(state, read)

    def merge(self, a: Tensor, b: Tensor) -> Tensor:
        """The state in which both were seen."""
        if not self.peaks:
            return a + b
        sums = a.shape[-1] - self.peaks
        parts = a[..., :sums] + b[..., :sums], torch.maximum(a[..., sums:], b[..., sums:])
        return torch.cat(parts, -1)


def tensor_probe(name: str, format: str | Format | None = None) -> Probe[Tensor]:
    """The probe of tensors of that name; `format` is what `underflow` and `overflow` ask about.

    Errors: `UnknownNameError` for a probe or a format; `UsageError` where a format is missing.

    >>> probe = tensor_probe("overflow", "e4m3fn")
    >>> probe.values(probe.update(probe.init(), torch.tensor([1.0, 464.0, 465.0, -1e9])))
    {'overflow_e4m3fn': tensor(0.5000, dtype=torch.float64)}
    """
    if name in PROBES:
        return PROBES[name]
    if name not in FORMAT_PROBES:
        raise UnknownNameError("probe", name, [*PROBES, *FORMAT_PROBES])
    if format is None:
        raise UsageError(f"probe {name!r} asks about a format; give one, such as format='e4m3fn'")
    return FORMAT_PROBES[name](get_format(format))


def observe(
    probes: list[Probe[Tensor]], states: list[Tensor | None], x: Tensor
) -> list[Tensor | None]:
    """The states of all probes after `x`, a block at a time: some need copies in float64."""
    x = x.detach()
    for block in blocks(tuple(x.shape), BLOCK.get(x.device.type, LARGE)):
        part = x[block.where]
        states = [probe.update(s, part) for probe, s in zip(probes, states, strict=True)]
    return states


def _counted(total: Tensor, x: Tensor) -> Tensor:
    """A state of two columns: a total, and the number of elements."""
    total = total.double().reshape(1)
    return torch.cat([total, total.new_full((1,), x.numel())])


def _size(x: Tensor, order: float) -> Tensor:
    """The norm of that order, in float64; a NaN stays, and no elements have 0."""
    if not x.numel():
        return x.new_zeros(1, dtype=torch.float64)
    library: Any = torch.linalg
    return library.vector_norm(x, order, dtype=torch.float64).reshape(1)


def _share(name: str, doc: str, of: Callable[[Tensor], Tensor]) -> Probe[Tensor]:
    """The share of elements of which `of` is true; NaN where there is none."""
    return Probe[Tensor](
        name, doc,
        lambda x: _counted(of(x).sum(), x),
        lambda s: {name: s[..., 0] / s[..., 1]},
    )  # fmt: skip


PROBES: dict[str, Probe[Tensor]] = {
    probe.name: probe
    for probe in (
        Probe[Tensor](
            "norm", "root of the sum of squares",
            lambda x: _size(x, 2).square(),
            lambda s: {"norm": s[..., 0].sqrt()},
        ),
        Probe[Tensor](
            "amax", "largest size of an element",
            lambda x: _size(x, math.inf),
            lambda s: {"amax": s[..., 0]},
            peaks=1,
        ),
        Probe[Tensor](
            "mean", "mean of the elements",
            lambda x: _counted(x.sum(dtype=torch.float64), x),
            lambda s: {"mean": s[..., 0] / s[..., 1]},
        ),
        _share("zeros", "share of elements that are 0", lambda x: x == 0),
        Probe[Tensor](
            "nonfinite", "number of elements that are NaN or infinite",
            lambda x: torch.isfinite(x).logical_not().sum().double().reshape(1),
            lambda s: {"nonfinite": s[..., 0]},
        ),
    )
}  # fmt: skip


def _underflow(format: Format) -> Probe[Tensor]:
    half = format.smallest_subnormal / 2  # a tie goes to the even neighbour, which is 0
    return _share(
        f"underflow_{format.name}", "share of elements that are not 0 and round to it",
        lambda x: (x != 0) & (x.double().abs() <= half),
    )  # fmt: skip


def _overflow(format: Format) -> Probe[Tensor]:
    spacing = math.ldexp(1.0, format.emax - format.mantissa_bits)
    half = format.max + spacing / 2
    odd = (format.max / spacing) % 2 == 1  # then a tie goes to what lies beyond
    beyond = torch.ge if odd else torch.gt
    return _share(
        f"overflow_{format.name}", "share of finite elements that round beyond the largest",
        lambda x: torch.isfinite(x) & beyond(x.double().abs(), half),
    )  # fmt: skip


FORMAT_PROBES: dict[str, Callable[[Format], Probe[Tensor]]] = {
    "underflow": _underflow,
    "overflow": _overflow,
}
