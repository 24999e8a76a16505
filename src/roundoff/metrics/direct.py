"""The direct error of a candidate in training, kept in fixed memory however long the run is.

At a sampled step t of the baseline's own run, x_t is the candidate's gradient (or update) less
the baseline's g_t, at the same weights and batch, so nothing in it is feedback of weights that
went apart. Of each tensor there are sums over blocks of consecutive samples: of <x,x>, <x,g>,
<g,g>, and of x itself, whole where it is short and as a linear sketch elsewhere.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from roundoff.errors import UsageError

__all__ = [
    "BLOCKS", "SKETCH", "DirectError", "Reduced", "Sample", "Track", "Tracks", "reduced",
    "sketched",
]  # fmt: skip

BLOCKS = 64
"""Blocks that are kept at most; when they are full, neighbours are added up in pairs."""

SKETCH = 4093
"""Length of a sketch: a prime, so that equal rows of a matrix fall on different places."""

GG = 2  # the row of <g,g> in the sums
CHUNK = 1 << 20  # elements whose products are taken in float64 at once


@dataclass(frozen=True, eq=False)
class Reduced:
    """One tensor of one sample: <x,x>, <x,g>, <g,g>, and x or its sketch (empty: none is kept)."""

    dots: Tensor
    sketch: Tensor


def reduced(x: Tensor, g: Tensor, *, sketch: bool = True) -> Reduced:
    """Reduce an error x and a gradient g, of one shape; nothing is fetched from the device.

    >>> reduced(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 2.0])).dots.tolist()
    [1.0, 2.0, 8.0]
    """
    x, g = (t.detach().flatten().float() for t in (x, g))
    dots = torch.stack([_dot(x, x), _dot(x, g), _dot(g, g)])
    return Reduced(dots, sketched(x) if sketch else x[:0])


Sample = Mapping[str, Reduced]
"""All tensors of one sample, by their names."""


@dataclass(eq=False)
class Track:
    """What is kept of one tensor.

    `sums` [3, blocks] holds <x,x>, <x,g> and <g,g>; `sketch` [blocks, length] the sums of x, or
    of its sketch. `nonfinite` [2] counts samples that are in none of these, since they held a
    NaN or an infinity: in the candidate alone, and in the baseline.
    """

    sums: Tensor
    sketch: Tensor
    nonfinite: Tensor

    @classmethod
    def like(cls, one: Reduced) -> Track:
        """An empty track for such a tensor, on its device."""
        device = one.dots.device
        return cls(
            torch.zeros(3, BLOCKS, dtype=torch.float64, device=device),
            torch.zeros(BLOCKS, one.sketch.numel(), device=device),
            torch.zeros(2, dtype=torch.long, device=device),
        )

    def add(self, block: int, one: Reduced) -> None:
        """Take in a sample; nothing is fetched from the device."""
        finite, steady = one.dots.isfinite().all(), one.dots[GG].isfinite()
        self.nonfinite += torch.stack([steady & ~finite, ~steady])
        self.sums[:, block] += torch.where(finite, one.dots, 0.0)
        self.sketch[block] += torch.where(finite, one.sketch, 0.0)

    def halve(self) -> None:
        """Add up neighbouring blocks; the second half is free again."""
        for kept in (self.sums.T, self.sketch):
            kept[: BLOCKS // 2] = kept[0::2] + kept[1::2]
            kept[BLOCKS // 2 :] = 0

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """All that it holds: what is added to merge, and stored to resume."""
        return self.sums, self.sketch, self.nonfinite


@dataclass(eq=False)
class Tracks:
    """The tracks of all tensors, which fill their blocks together.

    `length` is the number of samples in a full block: 1 at first, twice as many each time the
    blocks run out, so that there are always between 32 and 64 of them after the first 32.
    """

    samples: int = 0
    length: int = 1
    of: dict[str, Track] = field(default_factory=dict[str, Track])

    @property
    def blocks(self) -> int:
        """How many blocks hold something."""
        return -(-self.samples // self.length)

    def add(self, sample: Sample) -> None:
        """Take in one sample of all tensors. `UsageError` if they are not those of the first."""
        if self.samples and sample.keys() != self.of.keys():
            odd = ", ".join(sorted(sample.keys() ^ self.of.keys()))
            raise UsageError(f"every sample needs the same tensors; not in all of them: {odd}")
        if self.samples == BLOCKS * self.length:
            self.length *= 2
            for track in self.of.values():
                track.halve()
        for name, one in sample.items():
            if name not in self.of:
                self.of[name] = Track.like(one)
            self.of[name].add(self.samples // self.length, one)
        self.samples += 1

    def sums(self, name: str) -> Tensor:
        """<x,x>, <x,g>, <g,g> of each block that holds something, on the CPU: [3, blocks]."""
        return self.of[name].sums[:, : self.blocks].cpu()

    def gram(self, name: str) -> Tensor:
        """Inner products of the blocks' sums of x, on the CPU in float64: [blocks, blocks]."""
        s = self.of[name].sketch[: self.blocks].double()
        return (s @ s.T).cpu()


@dataclass(eq=False)
class DirectError:
    """The direct error of one candidate.

    `plain` are samples at the baseline's own weights. `redrawn` are samples at weights whose low
    bits were drawn anew, for baseline and candidate alike: an error that only looks steady since
    the weights hardly move (their own rounding, at a low learning rate) changes its sign there,
    a bias does not. `given_up` counts samples that came to nothing: the loss changed its
    scale, or no backward pass followed.

    >>> g, error = torch.tensor([3.0, 4.0]), DirectError()
    >>> for _ in range(100):
    ...     error.plain.add({"w": reduced(-0.01 * g, g)})
    >>> error.plain.samples, error.plain.blocks, error.plain.length
    (100, 50, 2)
    """

    plain: Tracks = field(default_factory=Tracks)
    redrawn: Tracks = field(default_factory=Tracks)
    given_up: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that it holds, by name: what `merge` adds up and a resumed run restores."""
        return {
            f"{kind}/{part}/{name}": tensor
            for kind, tracks in (("plain", self.plain), ("redrawn", self.redrawn))
            for name, track in tracks.of.items()
            for part, tensor in zip(("sums", "sketch", "nonfinite"), track.tensors(), strict=True)
        }

    def copied(self) -> DirectError:
        """A copy that shares no tensor with this one."""
        return copy.deepcopy(self)

    def merge(self, other: DirectError) -> None:
        """Take in the samples of another worker, which were taken at the same steps.

        Each worker's batch is a sample of its own, as the parts of an accumulated gradient are.
        """
        mine, its = self.tensors(), other.tensors()
        clocks = [c.clocks() | {"given_up": 0} for c in (self, other)]
        if mine.keys() != its.keys() or clocks[0] != clocks[1]:
            raise UsageError("workers of one run must sample the same tensors at the same steps")
        for name, tensor in mine.items():
            tensor.add_(its[name])
        self.given_up += other.given_up

    def clocks(self) -> dict[str, int]:
        """The counters, as plain numbers."""
        kinds = (("plain", self.plain), ("redrawn", self.redrawn))
        clocks = {f"{kind}_{n}": getattr(t, n) for kind, t in kinds for n in ("samples", "length")}
        return clocks | {"given_up": self.given_up}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], clocks: Mapping[str, int]) -> DirectError:
        """The direct error whose `tensors()` and `clocks()` these are."""
        error = cls(given_up=clocks["given_up"])
        for kind, tracks in (("plain", error.plain), ("redrawn", error.redrawn)):
            tracks.samples, tracks.length = clocks[f"{kind}_samples"], clocks[f"{kind}_length"]
            start = f"{kind}/sums/"
            for name in (n.removeprefix(start) for n in tensors if n.startswith(start)):
                parts = (tensors[f"{kind}/{p}/{name}"] for p in ("sums", "sketch", "nonfinite"))
                tracks.of[name] = Track(*parts)
        return error


def sketched(x: Tensor) -> Tensor:
    """A linear image of a flat x, of length min(len(x), SKETCH), that keeps inner products.

    x is cut into rows, element j of row r gets the fixed random sign a_r b_(r+j), and the rows
    are added up. The inner product of two sketches is that of the tensors on average over signs,
    with an error of about 1/sqrt(SKETCH) of the product of their lengths, also where all rows are
    alike. A tensor that fits is its own sketch. After the count sketch of Charikar, Chen and
    Farach-Colton (2002), with the index for a hash.

    >>> sketched(torch.tensor([1.0, 2.0])).tolist()
    [1.0, 2.0]
    """
    rows, rest = divmod(x.numel(), SKETCH)
    if rows + (rest > 0) <= 1:
        return x
    a, b = _signs(2 * (rows + 1) + SKETCH).to(x.device).tensor_split([rows + 1])
    turned, whole = b.unfold(0, SKETCH, 1), x[: rows * SKETCH].view(rows, SKETCH)
    image = torch.zeros(SKETCH, device=x.device)
    for part in (slice(r, r + CHUNK // SKETCH) for r in range(0, rows, CHUNK // SKETCH)):
        image += a[:rows][part] @ (turned[:rows][part] * whole[part])
    image[:rest] += a[rows] * turned[rows, :rest] * x[rows * SKETCH :]
    return image


def _signs(n: int) -> Tensor:
    """The first n of one fixed sequence of random signs."""
    bits = torch.randint(2, (n,), generator=torch.Generator().manual_seed(0))
    return (2 * bits - 1).float()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of flat tensors, in float64."""
    parts = [slice(i, i + CHUNK) for i in range(0, max(a.numel(), 1), CHUNK)]
    return torch.stack([torch.dot(a[part].double(), b[part].double()) for part in parts]).sum()
