"""From the lines of an experiment to answers: distances in yardsticks, growth, noise or bias.

All of it at stated steps, since a candidate in units of one ulp falls by orders of magnitude
within some hundred steps, and over repeats, which are the independent units.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from roundoff.metrics.intervals import Interval, log_t_interval, ratio_interval, slope_interval
from roundoff.metrics.noise_or_bias import RANK, gravest

__all__ = [
    "BASELINE", "METRIC", "UNMEASURED", "Broken", "Direct", "Growth", "Unit", "arms_of", "broken",
    "direct_errors", "distance", "growth",
    "losses", "skipped", "steps_of", "units", "values",
]  # fmt: skip

Record = Mapping[str, Any]
BASELINE = "baseline"
UNMEASURED = "was not measured"
METRIC = "rel_l2"
"""The distance in which verdicts are given, unless another is asked for."""


@dataclass(frozen=True)
class Unit:
    """A candidate's distance in units of a yardstick's, after a step.

    `ratio` is a geometric mean with its t interval on logarithms over the repeats that have both;
    None where either is exactly 0 or not finite, and `why` says so.
    """

    candidate: str
    yardstick: str
    step: int
    ratio: Interval | None
    why: str = ""


@dataclass(frozen=True)
class Growth:
    """The local growth of an arm: its distance grows as the step to this power, between two."""

    arm: str
    start: int
    end: int
    power: Interval | None


@dataclass(frozen=True)
class Broken:
    """An arm of which a `what` (loss or gradient) that counted was NaN or infinite (`value`).

    First at `step`, in `repeats` of the `of` that it took part in; `lasts` if it was in the end.
    """

    arm: str
    what: str
    value: float
    step: int
    repeats: tuple[int, ...]
    of: int
    lasts: bool

    def __str__(self) -> str:
        """What happened, and what it means, in a line."""
        word = "NaN" if math.isnan(self.value) else f"{self.value:g}"
        where = f"in repeat {', '.join(map(str, self.repeats))} of {self.of}" * (self.of > 1)
        when = f"from step {self.step} on" if self.lasts else f"first at step {self.step}"
        means = (
            "it was finite again later" if not self.lasts
            else "after it nothing can be compared; train fewer steps, or at a lower rate"
            if self.arm == BASELINE
            else "it diverged, or its format overflowed; its distances after it tell no more"
        )  # fmt: skip
        told = f"{self.arm}: its {self.what} is {word} {when}"
        return f"{' '.join(filter(None, (told, where)))}: {means}"


@dataclass(frozen=True)
class Direct:
    """Noise or bias of a candidate over the repeats: the gravest word, and how often each.

    `gain` is the largest in size of any biased tensor in any repeat, or without one of all as one.
    `samples` counts those of all repeats, redrawn weights included; `given_up` those lost.
    """

    candidate: str
    of: str
    verdict: str
    counts: Mapping[str, int]
    size: Interval
    gain: float
    detectable: float
    why: str
    samples: int
    given_up: int


def arms_of(records: Sequence[Record]) -> list[str]:
    """All arms, in the order in which they were asked for."""
    return list(dict.fromkeys(arm for r in records for arm in r["distances"]))


def steps_of(records: Sequence[Record]) -> list[int]:
    """The steps after which weights were compared."""
    found = {at["step"] for r in records for log in r["distances"].values() for at in log}
    return sorted(found)


def values(records: Sequence[Record], arm: str, step: int, metric: str) -> dict[int, float]:
    """A metric of an arm after a step, by repeat."""
    return {
        r["training"]["repeat"]: float(at[metric])
        for r in records
        for at in r["distances"].get(arm, [])
        if at["step"] == step
    }


def distance(records: Sequence[Record], arm: str, step: int, metric: str = METRIC) -> Interval:
    """The geometric mean over repeats; exactly 0 where every repeat is."""
    return _typical(values(records, arm, step, metric).values())


def _typical(held: Iterable[float]) -> Interval:
    sizes = list(held)
    if sizes and not any(sizes):
        return Interval(0.0, 0.0, 0.0, len(sizes))
    return log_t_interval(sizes)


def units(
    records: Sequence[Record],
    candidates: Iterable[str],
    yardsticks: Iterable[str],
    *,
    steps: Iterable[int] | None = None,
    metric: str = METRIC,
) -> list[Unit]:
    """Every candidate in units of every yardstick, at some or all compared steps."""
    chosen = steps_of(records) if steps is None else list(steps)
    return [
        _unit(records, candidate, yardstick, step, metric)
        for candidate in candidates
        for yardstick in yardsticks
        for step in chosen
    ]


def _unit(
    records: Sequence[Record], candidate: str, yardstick: str, step: int, metric: str
) -> Unit:
    a, b = (values(records, arm, step, metric) for arm in (candidate, yardstick))
    shared = sorted(a.keys() & b.keys())
    if not shared:
        return Unit(candidate, yardstick, step, None, UNMEASURED)
    for arm, held in ((yardstick, b), (candidate, a)):
        if any(held[i] == 0 for i in shared):
            return Unit(candidate, yardstick, step, None, f"{arm} is exactly 0")
        if wrong := [held[i] for i in shared if not math.isfinite(held[i])]:
            return Unit(candidate, yardstick, step, None, f"{arm} is {max(wrong, key=math.isnan)}")
    ratio = ratio_interval([a[i] for i in shared], [b[i] for i in shared])
    return Unit(candidate, yardstick, step, ratio)


def growth(records: Sequence[Record], arm: str, metric: str = METRIC) -> list[Growth]:
    """The local log-log slope of an arm between neighbouring compared steps."""
    found: list[Growth] = []
    held = {s: values(records, arm, s, metric) for s in steps_of(records)}
    steps = [s for s, of in held.items() if of]
    for start, end in itertools.pairwise(steps):
        shared = sorted(held[start].keys() & held[end].keys())
        rows = [[held[start][i], held[end][i]] for i in shared]
        power = slope_interval([start, end], rows) if rows and all(map(all, rows)) else None
        found.append(Growth(arm, start, end, power))
    return found


def direct_errors(records: Sequence[Record], candidate: str, of: str = "gradient") -> Direct | None:
    """Noise or bias of a candidate's gradient or update; None where it was not sampled."""
    found = [
        r["direct"][candidate][of]
        for r in records
        if candidate in r["direct"] and r["direct"][candidate][of] is not None
    ]
    given_up = sum(r["direct"][candidate].get("given_up", 0) for r in records
                   if candidate in r["direct"])  # fmt: skip
    if not found:
        return _all_given_up(candidate, of, given_up) if given_up and of == "gradient" else None
    words = [f["verdict"] for f in found]
    biased = [t for f in found for t in f["tensors"] if t["verdict"] == "biased"]
    return Direct(
        candidate, of, gravest(words), {w: words.count(w) for w in RANK if w in words},
        _typical(float(f["all"]["size"]) for f in found),
        max((float(t["gain"]["value"]) for t in biased or [f["all"] for f in found]), key=abs),
        max(float(f["all"]["detectable"]) for f in found),
        next(f["all"]["why"] for f in found if f["verdict"] == gravest(words)),
        sum(f["samples"] + f["redrawn"] for f in found), given_up,
    )  # fmt: skip


def _all_given_up(candidate: str, of: str, given_up: int) -> Direct:
    why = f"every sample was given up ({given_up}): the loss changed its scale"
    nothing = _typical([])
    return Direct(
        candidate, of, "cannot tell", {}, nothing, math.nan, math.inf, why, 0, given_up
    )  # fmt: skip


def losses(records: Sequence[Record], arm: str) -> list[tuple[int, float]]:
    """The mean loss over repeats, by step."""
    by_step: dict[int, list[float]] = {}
    for r in records:
        for at in r["log"].get(arm, []):
            by_step.setdefault(at["step"], []).append(float(at["loss"]))
    return [(step, sum(held) / len(held)) for step, held in sorted(by_step.items())]


def skipped(records: Sequence[Record], arm: str, until: float = math.inf) -> int | None:
    """Steps that loss scaling skipped in all repeats, up to one; None where there is none of it."""
    log = [at for r in records for at in r["log"].get(arm, []) if "skipped" in at]
    return sum(at["skipped"] for at in log if at["step"] <= until) if log else None


def broken(records: Sequence[Record]) -> list[Broken]:
    """The arms, the baseline first, that were NaN or infinite anywhere."""
    found: list[Broken] = []
    for arm in (BASELINE, *arms_of(records)):
        logs = {r["training"]["repeat"]: r["log"][arm] for r in records if arm in r["log"]}
        lost = {i: [at for at in log if _lost(at)] for i, log in logs.items()}
        lost = {i: entries for i, entries in lost.items() if entries}
        if lost:
            first = min((entries[0] for entries in lost.values()), key=lambda at: at["step"])
            what = "gradient" if math.isfinite(first["loss"]) else "loss"
            value = float(first["loss" if what == "loss" else "grad_norm"])
            lasts = any(entries[-1] is logs[i][-1] for i, entries in lost.items())
            found.append(Broken(arm, what, value, first["step"], tuple(lost), len(logs), lasts))
    return found


def _lost(at: Mapping[str, Any]) -> bool:
    """Whether a step's loss is no number, or a gradient that moved the weights."""
    moved = not at.get("skipped", False)
    return not math.isfinite(at["loss"]) or (moved and not math.isfinite(at["grad_norm"]))
