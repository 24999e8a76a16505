"""Rules: when a value of a running series is a spike.

A rule is a value. Its `Detector` takes one value after the other, and keeps the last ones as what
is usual; one that is beyond the bound enters them as the bound, so that a level that stays becomes
usual.
"""

from __future__ import annotations

import math
import statistics
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from roundoff.errors import UnknownNameError, UsageError
from roundoff.live.fields import what_is_wrong
from roundoff.records import Spike

__all__ = [
    "DEFAULT_RULES",
    "RULES",
    "Absolute",
    "Detector",
    "Max",
    "Mean",
    "Median",
    "NonFinite",
    "Rule",
    "ZClip",
    "find",
    "parse_rule",
]

MAD_TO_SIGMA = 1.4826
"""From the median of absolute deviations to the standard deviation, where values are normal."""


class Rule(BaseModel):
    """When a value is a spike: what lies above `bound` of the `window` values before it.

    Nothing is judged before `warmup` values have been seen. A spike is told once `patience` values
    in a row are beyond, and none is told within `cooldown` values of one. NaN and the infinities
    are the matter of `NonFinite` alone: other rules pass them over.

    Errors: `UsageError` with all that is wrong, in one line.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ClassVar[str]
    doc: ClassVar[str]

    limit: float
    window: int = Field(default=64, ge=2)
    warmup: int = Field(default=16, ge=0)
    patience: int = Field(default=1, ge=1)
    cooldown: int = Field(default=16, ge=0)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise UsageError(f"rule {self.name}: {what_is_wrong(error, type(self))}") from None

    @abstractmethod
    def bound(self, past: Sequence[float]) -> float:
        """The largest value that may follow these, which are at least one and finite."""

    def is_beyond(self, value: float, past: Sequence[float]) -> bool:
        """Whether a value that follows these is a spike."""
        ready = past and len(past) >= min(self.warmup, self.window)
        return bool(ready) and math.isfinite(value) and value > self.bound(past)


class NonFinite(Rule):
    """NaN and infinities, at once.

    >>> [spike.step for spike in find("loss", [(0, 2.0), (1, float("nan"))], NonFinite())]
    [1]
    """

    name: ClassVar[str] = "nonfinite"
    doc: ClassVar[str] = "NaN or infinity, at once"
    limit: float = math.inf

    def bound(self, past: Sequence[float]) -> float:  # noqa: ARG002
        """Every finite value may follow."""
        return math.inf

    def is_beyond(self, value: float, past: Sequence[float]) -> bool:  # noqa: ARG002
        """Whether it is not finite."""
        return not math.isfinite(value)


class Median(Rule):
    """A robust z-score: over the median by more than `limit` deviations, by the MAD.

    And by more than the share `least` of the median, which where values hardly move is the more.

    >>> usual = [(i, 1 + 0.01 * (i % 5)) for i in range(40)]
    >>> [str(spike) for spike in find("loss", [*usual, (40, 3.0)], Median())]
    ['step 40: loss is 3, usually 1.02 (median)']
    """

    name: ClassVar[str] = "median"
    doc: ClassVar[str] = "over the median by LIMIT deviations (by the median absolute one)"
    limit: float = Field(default=8.0, gt=0)
    least: float = Field(default=0.1, ge=0)

    def bound(self, past: Sequence[float]) -> float:
        """Median + max(limit * sigma, least * |median|)."""
        median = statistics.median(past)
        sigma = MAD_TO_SIGMA * statistics.median(abs(x - median) for x in past)
        return median + max(self.limit * sigma, self.least * abs(median))


class Mean(Rule):
    """More than `limit` times the running mean, as a distance where that is negative."""

    name: ClassVar[str] = "mean"
    doc: ClassVar[str] = "over LIMIT times the mean"
    limit: float = Field(default=2.0, gt=1)

    def bound(self, past: Sequence[float]) -> float:
        """Mean + (limit - 1) |mean|."""
        mean = statistics.fmean(past)
        return mean + (self.limit - 1) * abs(mean)


class Max(Rule):
    """More than `limit` times the running maximum (Megatron-LM has 10)."""

    name: ClassVar[str] = "max"
    doc: ClassVar[str] = "over LIMIT times the maximum"
    limit: float = Field(default=10.0, gt=1)

    def bound(self, past: Sequence[float]) -> float:
        """Maximum + (limit - 1) |maximum|."""
        return max(past) + (self.limit - 1) * abs(max(past))


class ZClip(Rule):
    """A z-score by running averages of mean and variance, as ZClip takes of gradient norms.

    `alpha` is the weight of the past. Source: arXiv 2504.02507, with a z of 2.5 and an alpha of
    0.97.
    """

    name: ClassVar[str] = "zclip"
    doc: ClassVar[str] = "over the running mean by LIMIT running deviations"
    limit: float = Field(default=2.5, gt=0)
    window: int = Field(default=256, ge=2)
    warmup: int = Field(default=25, ge=0)
    alpha: float = Field(default=0.97, gt=0, lt=1)

    def bound(self, past: Sequence[float]) -> float:
        """Mean + limit * deviation, from the first `warmup` values on."""
        first = past[: max(1, self.warmup)]
        mean = statistics.fmean(first)
        variance = statistics.pvariance(first, mean)
        for x in past[len(first) :]:
            mean = self.alpha * mean + (1 - self.alpha) * x
            variance = self.alpha * variance + (1 - self.alpha) * (x - mean) ** 2
        return mean + self.limit * math.sqrt(variance)


class Absolute(Rule):
    """More than `limit`, from the first value on."""

    name: ClassVar[str] = "absolute"
    doc: ClassVar[str] = "over LIMIT"
    warmup: int = Field(default=0, ge=0)

    def bound(self, past: Sequence[float]) -> float:  # noqa: ARG002
        """The limit."""
        return self.limit

    def is_beyond(self, value: float, past: Sequence[float]) -> bool:
        """Whether it exceeds the limit; there need be no past."""
        return len(past) >= self.warmup and math.isfinite(value) and value > self.limit


RULES: dict[str, type[Rule]] = {
    rule.name: rule for rule in (Median, NonFinite, Mean, Max, ZClip, Absolute)
}
DEFAULT_RULES: tuple[Rule, ...] = (NonFinite(), Median())


def parse_rule(text: str) -> Rule:
    """The rule of a text: its name, and what is other than usual of it.

    >>> parse_rule("median:limit=6,window=100").window
    100
    """
    name, _, rest = text.partition(":")
    if name not in RULES:
        raise UnknownNameError("rule", name, RULES)
    pairs = [part.partition("=") for part in rest.split(",") if part]
    for key, sign, _ in pairs:
        if not sign:
            raise UsageError(f"rule {text!r}: {key!r} has no value; expected {key}=NUMBER")
    return RULES[name](**{key.strip(): value.strip() for key, _, value in pairs})


@dataclass
class Detector:
    """One rule on one series: what it has seen so far, and whether the next value is a spike.

    Steps may go back, as in a training that was resumed: what was seen of them is forgotten.
    """

    rule: Rule
    series: str
    past: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    streak: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    quiet: int = 0

    def see(self, step: int, value: float) -> Spike | None:
        """Take in a value; the spike that it completes, if there is one."""
        if self.past and step <= self.past[-1][0]:
            self.past = [(at, x) for at, x in self.past if at < step]
            self.streak = []
        usual = [x for _, x in self.past]
        beyond = self.rule.is_beyond(value, usual)
        bound = self.rule.bound(usual) if usual else math.nan
        if math.isfinite(value):
            self.past.append((step, min(value, bound) if beyond and usual else value))
            del self.past[: -self.rule.window]
        self.streak = [*self.streak, (step, value)] if beyond else []
        quiet, self.quiet = self.quiet, max(0, self.quiet - 1)
        patience = 1 if isinstance(self.rule, NonFinite) else self.rule.patience
        if len(self.streak) != patience or quiet:
            return None
        self.quiet = self.rule.cooldown
        centre = statistics.median(usual) if usual else math.nan
        return Spike(
            self.series, self.streak[0][0], step, _largest(x for _, x in self.streak),
            centre, bound, self.rule.name,
        )  # fmt: skip


def find(series: str, values: Iterable[tuple[int, float]], *rules: Rule) -> list[Spike]:
    """The spikes of a series of (step, value), by some rules: those of `DEFAULT_RULES` if none."""
    detectors = [Detector(rule, series) for rule in rules or DEFAULT_RULES]
    return [
        spike for step, value in values for one in detectors
        if (spike := one.see(step, value)) is not None
    ]  # fmt: skip


def _largest(values: Iterable[float]) -> float:
    """The largest; NaN before all else."""
    return max(values, key=lambda x: (math.isnan(x), x))
