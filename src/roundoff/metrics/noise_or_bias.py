"""Noise or bias: what the direct error of a candidate does to training, tensor by tensor.

An error persists where its sums over blocks of steps point one way, and has a gain where it
stretches or shrinks the gradient in block after block. Honest rounding of slowly moving weights
does both, so a gain counts as bias only if it stays when the low bits of the weights are redrawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from roundoff.errors import UsageError
from roundoff.metrics.bias import Estimate
from roundoff.metrics.direct import DirectError
from roundoff.metrics.sign_flips import flip_tail, holm, persistence
from roundoff.metrics.student_t import t_quantile, t_tail

__all__ = ["ALPHA", "ENOUGH", "RANK", "Judgement", "TensorError", "Word", "gravest", "judge"]

ALPHA = 1e-3
"""Chance of any false alarm among all tensors of one run."""

ENOUGH = 24
"""Blocks below which nothing is told: a tail of the sign-flip null is never below 2^(1-blocks)."""

POWER = 0.9
"""Chance with which a gain of the size called detectable would have been called a bias."""

Word = Literal["noise", "persistent", "biased", "identical", "cannot tell"]
RANK: tuple[Word, ...] = ("biased", "persistent", "cannot tell", "noise", "identical")


@dataclass(frozen=True)
class TensorError:
    """The direct error of one tensor, or of all of them as one (`name` "all").

    `size` is sqrt(sum ||x||^2 / sum ||g||^2); `persistence` 1 for noise, sqrt(samples) for
    a constant error; `gain` the mean over blocks of <x,g>/<g,g> with its standard error, and
    `redrawn` the same at redrawn weights. Tails are those of `persistence` and `gain` under their
    nulls, adjusted for the number of tests; a gain must show on the candidate's side too, in
    <x,c> with c = g + x, or its tail is 1. `detectable` is the gain that would have
    been called a bias at least 9 times in 10, the redrawn weights' say included; infinite where
    too little was sampled. `nonfinite` counts samples in which the candidate alone held NaN
    or infinities.
    """

    name: str
    verdict: Word
    why: str
    size: float
    persistence: float
    persistence_tail: float
    gain: Estimate
    gain_tail: float
    redrawn: Estimate
    detectable: float
    nonfinite: int


@dataclass(frozen=True)
class Judgement:
    """Noise or bias of a candidate: of each tensor, of all as one, and overall.

    `verdict` is the gravest of any tensor: with all tests accounted for, a single biased tensor
    is a finding.
    """

    verdict: Word
    all: TensorError
    tensors: tuple[TensorError, ...]
    samples: int
    blocks: int
    redrawn: int
    given_up: int
    alpha: float

    def __str__(self) -> str:
        """The verdict in a sentence or two."""
        worst = [t for t in self.tensors if t.verdict == self.verdict]
        told = (
            f"{self.verdict}: {len(worst)} of {len(self.tensors)} tensors, {self.samples} samples"
        )
        if self.verdict == "biased":
            top = max(worst or [self.all], key=lambda t: abs(t.gain.z))
            told += f"; e.g. {top.name}: gain {top.gain.value:.1e} (z {top.gain.z:.0f})"
        if self.verdict in ("noise", "persistent"):
            told += f"; a gain of {self.all.detectable:.0e} of all weights as one would have shown"
        return told


@dataclass(frozen=True)
class _Evidence:
    """What is known of one tensor before the number of tests is accounted for.

    `gram` and `sums` as in `Tracks`, `again` the sums at redrawn weights; `finite` counts the
    samples in them, and `alone` those in which only the candidate was not finite.
    """

    name: str
    gram: Tensor
    sums: Tensor
    finite: int
    alone: int
    again: Tensor

    @property
    def same(self) -> bool:
        """Whether candidate and baseline never differed."""
        return self.finite > 0 and not self.sums[0].any()

    @property
    def few(self) -> bool:
        """Whether there are too few blocks for the tests."""
        return min(len(self.gram), self.finite) < ENOUGH

    @property
    def gain(self) -> Estimate:
        """At the baseline's own weights."""
        return _gain(self.sums)

    @property
    def redrawn(self) -> Estimate:
        """At redrawn weights."""
        return _gain(self.again)

    @property
    def tails(self) -> tuple[float, float]:
        """Of persistence and of gain."""
        return flip_tail(self.gram), _gain_tail(self.sums)


class _Found(NamedTuple):
    """Which tests of a tensor were beyond their null, all tests accounted for."""

    persists: bool
    gain: bool
    stays: bool


def gravest(words: Iterable[Word]) -> Word:
    """The gravest of some verdicts.

    >>> gravest(["noise", "persistent", "cannot tell"])
    'persistent'
    """
    return min(words, key=RANK.index)


def judge(error: DirectError, *, alpha: float = ALPHA) -> Judgement:
    """The verdict on a direct error, every tensor and all as one, at family-wise level alpha.

    - identical: every x is 0;
    - noise: neither persistence nor gain is beyond its null;
    - persistent: errors add up, or have a gain, and neither is proved to be their own;
    - biased: a gain that stays, with its sign, at redrawn weights;
    - cannot tell: too few blocks, or a candidate that was not finite where the baseline was.

    `UsageError` without a single sample.

    >>> from roundoff.metrics.direct import reduced
    >>> g = torch.randn(200, 50, generator=torch.Generator().manual_seed(0))
    >>> error = DirectError()
    >>> for t in range(200):
    ...     tracks = error.redrawn if t % 5 == 4 else error.plain
    ...     tracks.add({"w": reduced(-1e-3 * g[t], g[t])})
    >>> judge(error).verdict
    'biased'
    """
    if not error.plain.samples:
        came = f" ({error.given_up} came to nothing)" if error.given_up else ""
        raise UsageError(f"no step was sampled{came}; take more steps, or sample more often")
    found = [_evidence(error, name) for name in error.plain.of]
    every = [_pooled(found), *found]
    tails = holm([tail for e in every for tail in e.tails])
    persistent, gains = tails[::2], tails[1::2]
    stay = _staying(every, gains, alpha)
    levels = alpha / len(tails), alpha / len(every)
    rows = [
        _tensor_error(e, p, gain, _Found(p < alpha, gain < alpha, e.name in stay), levels)
        for e, p, gain in zip(every, persistent, gains, strict=True)
    ]
    return Judgement(
        verdict=gravest(r.verdict for r in rows),
        all=rows[0],
        tensors=tuple(rows[1:]),
        samples=error.plain.samples,
        blocks=error.plain.blocks,
        redrawn=error.redrawn.samples,
        given_up=error.given_up,
        alpha=alpha,
    )


def _evidence(error: DirectError, name: str) -> _Evidence:
    plain, redrawn = error.plain, error.redrawn
    alone, both = (int(n) for n in plain.of[name].nonfinite)
    again = redrawn.sums(name) if name in redrawn.of else torch.zeros(3, 0)
    left = plain.samples - alone - both
    return _Evidence(name, plain.gram(name), plain.sums(name), left, alone, again)


def _pooled(found: list[_Evidence]) -> _Evidence:
    """All tensors as one."""
    return _Evidence(
        "all",
        torch.stack([e.gram for e in found]).sum(0),
        torch.stack([e.sums for e in found]).sum(0),
        min(e.finite for e in found),
        max(e.alone for e in found),
        torch.stack([e.again for e in found]).sum(0),
    )


def _gain(sums: Tensor) -> Estimate:
    """The mean of the blocks' gains, each block counting alike.

    Gradients shrink as a model learns: weighted by <g,g>, a few early steps would outvote the rest.
    """
    _, xg, gg = sums[:, sums[2] > 0]
    return _mean(xg / gg)


def _gain_tail(sums: Tensor) -> float:
    """P(a gain as far from 0 | none), seen from the baseline's side and from the candidate's.

    Where g is itself little more than rounding (the gradient of a bias that cancels, as that of
    the keys in a softmax), a stray x = c - g has <x,g> = -<g,g>: a gain of -1 that tells nothing
    of the candidate. Seen from its side, <x,c> = <x,g> + <x,x>, the artefact has the other
    sign. So both sides must agree, and the weaker counts.
    """
    xx, xg, gg = sums[:, sums[2] > 0]
    ours, theirs = _mean(xg / gg), _mean((xg + xx) / gg)
    if not ours.value * theirs.value > 0:
        return 1.0
    return max(_two_sided(ours), _two_sided(theirs))


def _mean(gains: Tensor) -> Estimate:
    n = len(gains)
    if n < 2:
        return Estimate(gains.mean().item() if n else math.nan, math.nan, n)
    return Estimate(gains.mean().item(), gains.std().item() / math.sqrt(n), n)


def _two_sided(gain: Estimate) -> float:
    """P(|t| >= the t seen) for a true gain of 0; 1 where the spread is unknown."""
    if gain.clusters < 2:
        return 1.0
    return min(1.0, 2 * t_tail(abs(gain.z), gain.clusters - 1))


def _staying(every: list[_Evidence], gain_tails: list[float], alpha: float) -> set[str]:
    """The tensors whose gain was found, and is found again, with its sign, at redrawn weights."""
    seen = [e for e, tail in zip(every, gain_tails, strict=True) if tail < alpha]
    again = holm([_gain_tail(e.again) for e in seen])
    return {
        e.name
        for e, tail in zip(seen, again, strict=True)
        if tail < alpha and e.redrawn.value * e.gain.value > 0
    }


def _tensor_error(
    e: _Evidence,
    persistence_tail: float,
    gain_tail: float,
    found: _Found,
    levels: tuple[float, float],
) -> TensorError:
    xx, gg = e.sums[0].sum().item(), e.sums[2].sum().item()
    verdict, why = _word(e, found)
    return TensorError(
        name=e.name,
        verdict=verdict,
        why=why,
        size=math.sqrt(xx / gg) if gg else math.nan,
        persistence=persistence(e.gram, xx),
        persistence_tail=persistence_tail,
        gain=e.gain,
        gain_tail=gain_tail,
        redrawn=e.redrawn,
        detectable=max(map(_detectable, (e.gain, e.redrawn), levels)),
        nonfinite=e.alone,
    )


def _word(e: _Evidence, found: _Found) -> tuple[Word, str]:
    """The verdict and its reason: the first that applies."""
    words: tuple[tuple[bool, Word, str], ...] = (
        (
            found.stays and not e.few,
            "biased",
            "stretches or shrinks the gradient, at redrawn weights too",
        ),
        (e.alone > 0, "cannot tell", f"not finite in {e.alone} samples where the baseline was"),
        (e.same, "identical", "bit for bit the baseline's"),
        (e.few, "cannot tell", f"{e.finite} samples; {ENOUGH} are the least"),
        (found.gain, "persistent", "has a gain, but not one that redrawn weights confirm"),
        (found.persists, "persistent", "adds up over steps, without a gain"),
        (True, "noise", "neither adds up nor has a gain"),
    )
    return next((word, why) for applies, word, why in words if applies)


def _detectable(gain: Estimate, level: float) -> float:
    """The gain that one of two tests, at this level, finds so often that both do with `POWER`."""
    if gain.clusters < 2:
        return math.inf
    df = gain.clusters - 1
    return (t_quantile(1 - level / 2, df) + t_quantile(math.sqrt(POWER), df)) * gain.se
