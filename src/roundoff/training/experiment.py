"""`Experiment`: what is trained, against what, and for how long, as a value."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from roundoff.errors import UsageError
from roundoff.kernels.loading import load
from roundoff.records import Environment
from roundoff.records.environment import source_of
from roundoff.store.json import digest
from roundoff.training.arms import FORMATS, Arm, parse_arm, parse_arms, variant_named
from roundoff.training.variants import AS_IT_IS, Variant

__all__ = ["Experiment", "Repeat", "environment", "logged_steps"]

LIBRARIES = ("transformers", "diffusers", "tokenizers", "matplotlib")
ROOMS = ("training", "workloads", "state")
"""Those of roundoff's rooms that decide what training gives, beside the ones of every cell."""
DEVICES = ("cpu", "cuda")
SLOW = "fp16"
"""The arm that a CPU computes several times slower than any other."""


@dataclass(frozen=True)
class Experiment:
    """Runs of one workload: a baseline, and arms that differ from it in one thing each.

    `baseline` is an attention (None: the model's own), `format` what both sides are autocast
    to. At `sampled` of the `steps`, or a few more at equal distances, the candidates' direct error
    is taken (0: at none). `long` is the length of one more baseline run, for a sample of what the
    model learns (0: none); `timed` asks for time and memory of a step with each candidate.
    `device` is where all of it computes: cpu or cuda.
    """

    workload: str
    baseline: str | None = None
    candidates: tuple[str, ...] = ()
    yardsticks: tuple[str, ...] = ()
    format: str = "fp32"
    steps: int = 300
    repeats: int = 6
    seed: int = 0
    sampled: int = 150
    threads: int = 1
    long: int = 0
    timed: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Refuse what cannot be, before anything is written."""
        for name in ("steps", "repeats", "threads"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("sampled", "long"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}; expected a number of steps")
        if self.format not in FORMATS:
            raise UsageError(f"format {self.format!r}; expected {', '.join(FORMATS)}")
        if self.device not in DEVICES:
            raise UsageError(f"device {self.device!r}; expected {' or '.join(DEVICES)}")
        for arm in self.arms:
            if arm.start >= self.steps:
                raise UsageError(
                    f"arm {arm.name!r} starts at step {arm.start}; the runs have {self.steps}"
                )

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Candidates, then yardsticks."""
        return parse_arms((*self.candidates, *self.yardsticks))

    @property
    def variant(self) -> Variant:
        """The baseline's attention."""
        return AS_IT_IS if self.baseline is None else variant_named(self.baseline)

    @property
    def every(self) -> int:
        """How many steps from one sample of the direct error to the next."""
        return max(1, self.steps // max(1, self.sampled))

    def arms_of(self, repeat: int) -> tuple[Arm, ...]:
        """The arms of one repeat: on a CPU the slow one only in a third, at least in two."""
        last = max(2, -(-self.repeats // 3))
        slow = self.device == "cpu" and self.format != SLOW and repeat >= last
        return tuple(arm for arm in self.arms if not (slow and arm.format == SLOW))

    def sampled_of(self, repeat: int) -> tuple[Arm, ...]:
        """The candidates of one repeat whose direct error is taken."""
        if not self.sampled:
            return ()
        named = (arm for arm in self.arms_of(repeat) if arm.name in self.candidates)
        return tuple(arm for arm in named if arm.is_candidate)

    def all_repeats(self) -> dict[str, Repeat]:
        """The repeats by id: what is one line of a run, each."""
        repeats = [Repeat(self, number) for number in range(self.repeats)]
        return {repeat.id: repeat for repeat in repeats}

    def long_id(self) -> str:
        """The identity of the long run."""
        kind = [self.workload, self.baseline, self.format, self.seed, self.device]
        return self.identity({"long": self.long, "of": kind})

    def timing_ids(self) -> dict[str, str]:
        """The candidates whose steps are timed, by the identity of the timing."""
        if not self.timed:
            return {}
        kind = [self.workload, self.baseline, self.format, self.seed, self.device]
        return {
            self.identity({"step times": name, "of": kind}): name
            for name in self.candidates
            if parse_arm(name).variant.over
        }

    def identity(self, document: Mapping[str, Any]) -> str:
        """The digest of a document, of users' functions by their source, and of the environment."""
        names = [self.workload, self.baseline or "", *(arm.name for arm in self.arms)]
        sources = {name: load(name).source for name in _functions(names)}
        known = digest(environment(self.threads, self.device))
        return digest({**document, "sources": sources, "environment": known})

    def to_record(self) -> dict[str, Any]:
        """The experiment as plain JSON data."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Experiment:
        """The experiment that `to_record` wrote."""
        plain: dict[str, Any] = dict(record)
        for name in ("candidates", "yardsticks"):
            plain[name] = tuple(plain[name])
        return cls(**plain)


@dataclass(frozen=True)
class Repeat:
    """One repeat of an experiment: baseline and arms from one pair of seeds."""

    experiment: Experiment
    number: int

    @property
    def seed(self) -> int:
        """Of the initial weights and of the data."""
        return self.experiment.seed + self.number

    @property
    def arms(self) -> tuple[Arm, ...]:
        """What runs beside the baseline."""
        return self.experiment.arms_of(self.number)

    @property
    def id(self) -> str:
        """Equal exactly when running it again could give nothing new: 16 hex digits.

        Users' functions count by their source, wherever they lie.
        """
        e = self.experiment
        plain = replace(
            e, repeats=1, seed=self.seed, candidates=(), yardsticks=(), long=0, timed=False
        )
        arms = [[arm.name, arm.name in e.candidates] for arm in self.arms]
        return e.identity({"training": plain.to_record(), "arms": arms})


def environment(threads: int, device: str = "cpu") -> dict[str, Any]:
    """The environment's numerics, with the libraries of models and the source of training.

    `UnsupportedError` for a device that is not here.
    """
    versions: dict[str, str] = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    numerics = Environment.here(device=device, threads=threads).numerics()
    return {**numerics, "models": versions, "training": source_of(ROOMS)}


def _functions(names: list[str]) -> list[str]:
    """The places of users' functions among some names, without formats and steps."""
    plain = [name.rpartition("@")[0] or name for name in names if ":" in name]
    return [name for name in plain if name.partition(":")[0] not in ("kernel", "recipe")]


def logged_steps(steps: int) -> list[int]:
    """The steps after which weights are compared: 1, 2, 5, 10, ... and the last.

    >>> logged_steps(300)
    [1, 2, 5, 10, 20, 50, 100, 200, 300]
    """
    decades = [m * 10**k for k in range(len(str(steps))) for m in (1, 2, 5)]
    return [*(s for s in decades if s < steps), steps]
