"""Inputs of attention that show what a kernel does, whatever the order of its sums.

Each query is zero but for one entry, so a score is one product and any matrix of scores can
be laid out; each column of V but one key's is zero, so an output is one weight over l.

    H heads    R = D rows, one a dimension    M keys    S [H,R,M] scores    V [H,M,D]
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from roundoff.formats import Format
from roundoff.operators.attention.parameters import settle
from roundoff.operators.inputs import stored
from roundoff.operators.protocol import Probe, Problem

__all__ = ["probes"]

HEAD_DIMS = 64, 128, 32, 16, 256
"""The first that a kernel takes; at powers of four the scale is exact."""
ODD_HEAD_DIMS = 128, 32, 96, 80, 40
"""Head dims whose scale is no power of two."""
APART = 16
"""Every so many keys the row's maximum comes again, so that each tile meets it at once."""
BELOW = -99.0
"""A score whose weight is below float32's normal numbers and above the smallest one."""
HIDDEN = -9984.0
"""A score whose weight is exactly 0, in few bits."""

Layout = tuple[Tensor, Tensor]
"""S [H,R,M] and V [H,M,D]."""


@dataclass(frozen=True, slots=True)
class _Setting:
    format: Format
    dim: int
    generator: torch.Generator

    @property
    def rows(self) -> int:
        """Queries that differ."""
        return min(self.dim, 64)

    @property
    def deep(self) -> bool:
        """Whether the format's range reaches weights of exp(-95)."""
        return self.format.emin <= -126

    def uniform(self, *shape: int, low: float, high: float) -> Tensor:
        drawn = torch.rand(shape, dtype=torch.float64, device="cpu", generator=self.generator)
        return low + (high - low) * drawn

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """From `low` up to and without `high`."""
        return torch.randint(low, high, shape, device="cpu", generator=self.generator)


@dataclass(frozen=True, slots=True)
class _Plan:
    """A probe before its problems: a layout of scores and values, and the shapes it comes in."""

    name: str
    doc: str
    groups: str
    layout: Callable[[_Setting, int], Layout]
    keys: Callable[[int], tuple[int, ...]] = lambda dim: (dim + 7, dim)
    dims: tuple[int, ...] = HEAD_DIMS
    second: float = 0.0

    def probe(self, format: Format, seed: int) -> Probe:
        """The probe for inputs of `format`."""
        made = (
            partial(self._problem, format, seed, shape=(dim, m), square=square)
            for dim in self.dims for m in self.keys(dim) for square in (False, True)
        )  # fmt: skip
        return Probe(self.name, self.doc, tuple(self.groups.split()), tuple(made))

    def _problem(
        self, format: Format, seed: int, *, shape: tuple[int, int], square: bool
    ) -> Problem:
        dim, m = shape
        setting = _Setting(format, dim, torch.Generator().manual_seed(seed))
        return _problem(setting, self.layout(setting, m), self.second, square=square)


def probes(format: Format, seed: int) -> tuple[Probe, ...]:
    """The probes for inputs of `format`; those that its range cannot hold are left out."""
    deep = _Setting(format, HEAD_DIMS[0], torch.Generator()).deep
    return tuple(
        p.probe(format, seed) for p in _plans() if deep or p.layout not in (_spikes, _depths)
    )


def _problem(setting: _Setting, layout: Layout, second: float, *, square: bool) -> Problem:
    """Scores laid out as one product each; `square` repeats the queries to as many as keys.

    Query i has its entry at dimension i: a power of two next to 1 / scale, times a number in
    [1, 2) of its own, so that few scores are alike. `second` times the power goes to the
    dimension after it, if it is not 0; then all queries have the same entries.
    """
    s, v = layout
    heads, rows, m = s.shape
    scale = setting.dim**-0.5
    whole = 2.0 ** round(-math.log2(scale))
    entry = torch.full((heads, rows), whole, dtype=torch.float64)
    if not second:
        entry = stored(entry * setting.uniform(heads, rows, low=1.0, high=2.0), setting.format)
    k = torch.zeros(heads, m, setting.dim, dtype=torch.float64)
    k[:, :, :rows] = (s / (entry * scale)[..., None]).transpose(1, 2)
    q = torch.zeros(heads, m if square else rows, setting.dim, dtype=torch.float64)
    at = torch.arange(q.shape[1])
    q[:, at, at % rows] = entry[:, at % rows].double()
    q[:, at, (at + 1) % rows] += second * whole
    return _stored(setting, q, k, v)


def _stored(setting: _Setting, q: Tensor, k: Tensor, v: Tensor) -> Problem:
    inputs = {n: stored(x[None], setting.format) for n, x in zip("qkv", (q, k, v), strict=True)}
    parameters = settle({
        "heads": q.shape[0], "seq_len": q.shape[1], "kv_len": k.shape[1], "head_dim": q.shape[2],
    })  # fmt: skip
    return Problem(inputs, setting.format, parameters, torch.arange(setting.rows))


def _one_hot(watched: Tensor, m: int, size: float = 1.0) -> Tensor:
    """V [H,M,D] whose column c holds `size` at key watched[h, c] alone."""
    heads, dim = watched.shape
    v = torch.zeros(heads, m, dim, dtype=torch.float64)
    return v.scatter_(1, watched[:, None, :], size)


def _watched(setting: _Setting, heads: int, m: int) -> Tensor:
    """D different keys for each head, in order."""
    drawn = [torch.randperm(m, generator=setting.generator)[: setting.dim] for _ in range(heads)]
    return torch.stack([keys.sort().values for keys in drawn])


def _weights(setting: _Setting, m: int) -> Layout:
    heads, dim, rows = 4, setting.dim, setting.rows
    watched = _watched(setting, heads, m)
    low = -30.0 if setting.deep else -9.0
    s = setting.uniform(heads, rows, m, low=low, high=low + 4.0)
    some = watched[:, None, :].expand(heads, rows, dim)
    chosen = setting.uniform(heads, rows, dim, low=0, high=1) < 12 / dim
    large = setting.uniform(heads, rows, dim, low=-5.0, high=0.0)
    return s.scatter(2, some, torch.where(chosen, large, s.gather(2, some))), _one_hot(watched, m)


def _depths(setting: _Setting, m: int) -> Layout:
    return _beside_ones(setting, m, 40.0, 86.0)


def _shallows(setting: _Setting, m: int) -> Layout:
    return _beside_ones(setting, m, 2.0, 9.0)


def _beside_ones(setting: _Setting, m: int, near: float, far: float) -> Layout:
    """Weights of exp(-near) to exp(-far) beside some that are 1, so that l is a whole number.

    The scores themselves are large, so that an ulp of theirs moves the weights.
    """
    heads, dim = 24, setting.dim
    top = setting.uniform(heads, setting.rows, 1, low=60.0, high=100.0)
    s = top - setting.uniform(heads, setting.rows, m, low=near, high=far)
    s[:, :, ::APART] = top
    others = torch.tensor([j for j in reversed(range(m)) if j % APART])
    watched = others[torch.arange(dim) % len(others)]
    return s, _one_hot(watched.expand(heads, dim).contiguous(), m)


def _stairs(setting: _Setting, m: int) -> Layout:
    heads, rows = 2, setting.rows
    height = setting.uniform(heads, rows, 1, low=6.0, high=20.0 if setting.deep else 8.0)
    along = torch.linspace(-1.0, 0.0, m, dtype=torch.float64) * height
    falling = (torch.arange(rows) % 2).bool()[None, :, None]
    jitter = setting.uniform(heads, rows, m, low=-0.3, high=0.3)
    s = torch.where(falling, along.flip(-1), along) + jitter
    return s, _one_hot(_watched(setting, heads, m), m)


def _spikes(setting: _Setting, m: int) -> Layout:
    """All weights but one of a row are below the normal numbers, if they meet the row's maximum.

    Before it they are exact, and only their common factor is below; 2^100 brings both back.
    """
    heads, rows = 2, setting.rows
    s = BELOW + setting.uniform(heads, rows, m, low=-2.5, high=2.5)
    at = torch.linspace(0, m - 1, heads * rows).long().view(rows, heads).T
    return s.scatter(2, at[..., None], 0.0), _one_hot(_watched(setting, heads, m), m, 2.0**100)


def _quotients(setting: _Setting, m: int) -> Layout:
    """Row i sees its first n_i keys alike, and sums V there to n_i times a tie of the format."""
    heads, dim, rows = 2, setting.dim, setting.rows
    counts = setting.integers(m // rows - 4, m // rows, heads, rows).cumsum(1) // 2 * 2 + 1
    s = torch.full((heads, rows, m), HIDDEN, dtype=torch.float64)
    s[torch.arange(m) < counts[..., None]] = 0.0
    bits = min(setting.format.mantissa_bits, 12)
    near = setting.integers(0, 2**bits - 40, heads, 1, dim)
    tie = 2 ** (bits + 1) + 2 * (near + setting.integers(0, 40, heads, rows, dim)) + 1
    steps = (counts[..., None] * tie).diff(dim=1, prepend=torch.zeros(heads, 1, dim).long())
    return s, _placed(steps, counts, m, setting.format) / 2.0 ** (bits + 1)


def _placed(steps: Tensor, counts: Tensor, m: int, format: Format) -> Tensor:
    """V [H,M,D]: the keys up to count i add what step i [H,R,D] says, in numbers of the format."""
    v = torch.zeros(steps.shape[0], m, steps.shape[2], dtype=torch.float64)
    heads, rows = counts.shape
    for head, row in itertools.product(range(heads), range(rows)):
        rest = steps[head, row].double()
        first = 0 if row == 0 else int(counts[head, row - 1])
        for key in range(first, int(counts[head, row])):
            exponent = torch.frexp(rest)[1].double() - format.mantissa_bits - 1
            unit = torch.pow(2.0, exponent.clamp_min(0.0))
            v[head, key] = (rest / unit).trunc() * unit
            rest = rest - v[head, key]
        assert not rest.any(), "a step has more bits than its keys can hold"
    return v


def _fine_scores(setting: _Setting, m: int) -> Layout:
    """Entries of K [H,M,R] in place of scores: each query has two entries, see `_problem`."""
    heads = 4
    s = setting.integers(-64, 64, heads, setting.rows, m).double() / 16
    watched = torch.arange(setting.dim) % m
    return s, _one_hot(watched.expand(heads, -1).contiguous(), m)


def _plans() -> tuple[_Plan, ...]:
    exponent = "exponent approximation exp"

    def many(_: int) -> tuple[int, ...]:
        return 1283, 1280

    return (
        _Plan("weights", "a dozen weights of one size, read one by one",
              "weights exponent exp approximation sum", _weights, lambda _: (263, 256)),
        _Plan("depths", "tiny weights beside exact ones", exponent, _depths),
        _Plan("depths, other scale", "the same where the scale is no power of two", exponent,
              _depths, dims=ODD_HEAD_DIMS),
        _Plan("shallows", "weights that fp16 holds beside exact ones", exponent + " weights",
              _shallows),
        _Plan("shallows, other scale", "the same where the scale is no power of two", exponent,
              _shallows, dims=ODD_HEAD_DIMS),
        _Plan("stairs", "scores that rise or fall along the keys",
              "tile maximum accumulator sum exp weights", _stairs, many),
        _Plan("quotients", "whole sums over whole counts, half-way between two outputs",
              "weights accumulator sum tile", _quotients, many),
        _Plan("fine scores", "scores with more bits than 16-bit formats hold",
              "scores exponent", _fine_scores, lambda _: (64,), second=2.0**-7),
        _Plan("spikes", "weights below the smallest normal number, times 2^100",
              "tile maximum weights accumulator", _spikes, many),
    )  # fmt: skip
