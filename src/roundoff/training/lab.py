"""Lab: baseline and arms of one repeat, in lock step on the same batches."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roundoff.errors import CandidateError, CellError, UnsupportedError, told
from roundoff.metrics.direct import DirectError, reduced
from roundoff.metrics.noise_or_bias import judge
from roundoff.metrics.wasserstein import wasserstein
from roundoff.metrics.weights import WeightDistance, gathered
from roundoff.training.arms import Arm
from roundoff.training.checkpoint import load_state, save_state
from roundoff.training.experiment import Repeat, logged_steps
from roundoff.training.runner import Runner
from roundoff.training.shadow import Shadow
from roundoff.training.variants import Variant, autocast, parameters
from roundoff.workloads.protocol import Pictures

__all__ = ["BASELINE", "Lab", "sample_of"]

BASELINE = Arm("baseline", "nothing")
SECONDS = 30.0
"""State is saved when so long has passed since the last time."""

Log = dict[str, list[dict[str, Any]]]


class Lab:
    """One repeat: `run()` trains all its arms to the end and returns what was measured.

    `folder` is where it may keep its state (None: nowhere, and it cannot resume). Bit for bit
    the same whether it was killed and resumed or not.
    """

    def __init__(self, repeat: Repeat, folder: Path | None = None) -> None:
        self.repeat, self.folder = repeat, folder
        self.experiment = repeat.experiment
        self.step = 0
        self.log: Log = {}
        self.distances: Log = {}
        self.tensors: Log = {}
        self.candidates = self.experiment.sampled_of(repeat.number)
        self.updates = {arm.name: DirectError() for arm in self.candidates}

    def run(self, tell: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
        """Train to the end; `tell` hears how many steps are taken."""
        with contextlib.ExitStack() as doors:
            self.baseline = self._entered(BASELINE, doors)
            self.runners = {arm.name: self._entered(arm, doors) for arm in self.repeat.arms}
            self.shadow = doors.enter_context(self._shadow())
            if self.folder:
                load_state(self, self.folder)
            last = time.monotonic()
            while self.step < self.experiment.steps:
                self._step(self.step)
                self.step += 1
                if self.step in logged_steps(self.experiment.steps):
                    self._compare()
                tell(self.step)
                if self.folder and time.monotonic() - last > SECONDS:
                    save_state(self, self.folder)
                    last = time.monotonic()
            return self._record()

    @property
    def everyone(self) -> dict[str, Runner]:
        """All arms by name, the baseline among them."""
        return {BASELINE.name: self.baseline, **self.runners}

    @property
    def errors(self) -> dict[str, DirectError]:
        """The direct errors of all candidates: of their gradients and of their updates."""
        gradients = {f"gradient {name}": e for name, e in self.shadow.errors.items()}
        return gradients | {f"update {name}": e for name, e in self.updates.items()}

    def _entered(self, arm: Arm, doors: contextlib.ExitStack) -> Runner:
        runner = Runner(self.experiment, self.repeat.seed, arm)
        with _named(arm.name, arm.start):
            return doors.enter_context(runner)

    def _shadow(self) -> Shadow:
        candidates = {arm.name: _as_variant(arm) for arm in self.candidates}
        every = self.experiment.every
        return Shadow(
            self.baseline.model, candidates, every=every, seed=self.repeat.seed, keep=True
        )

    def _step(self, number: int) -> None:
        for name, runner in self.runners.items():
            if runner.arm.start <= number:
                with _named(name, number):
                    self._step_of(runner, number)
        with _named(BASELINE.name, number):
            found = self.baseline.gradients(number, self.shadow)
            self._sample_updates()
            self._note(self.log, BASELINE.name, found | self.baseline.update())

    def _step_of(self, runner: Runner, number: int) -> None:
        if runner.arm.start == number and number:
            runner.branch_off(self.baseline)
        if runner.arm.start == number and runner.arm.change == "ulp":
            runner.nudge(number)
        self._note(self.log, runner.arm.name, runner.gradients(number) | runner.update())

    def _note(self, log: Log, name: str, values: dict[str, Any]) -> None:
        log.setdefault(name, []).append({"step": self.step + 1, **values})

    def _sample_updates(self) -> None:
        """The direct errors of the update: what the optimizer would make of the candidates'."""
        if not self.shadow.kept_gradients or self.baseline.scaler is not None:
            return
        own = {n: w.grad for n, w in parameters(self.baseline.task.model).items()}
        for name, (c, there) in self.shadow.kept_gradients.items():
            g = self.baseline.update_by(there or {n: t for n, t in own.items() if t is not None})
            moved = self.baseline.update_by(c)
            tracks = self.updates[name].plain if there is None else self.updates[name].redrawn
            tracks.add({n: reduced(moved[n] - g[n], g[n], sketch=there is None) for n in g})

    def _compare(self) -> None:
        """The distance of every arm's weights from the baseline's, after a step."""
        base = _weights(self.baseline)
        for name, runner in self.runners.items():
            if runner.arm.start >= self.step:
                continue
            weights = _weights(runner)
            found = {n: gathered(base[n], weights[n]) for n in base}
            whole = WeightDistance()
            for distance in found.values():
                whole = whole.merge(distance)
            pooled = wasserstein(_flat(base.values()), _flat(weights.values()))
            self._at(self.distances, name, _metrics(whole) | {"w1": pooled})
            each = {n: {"rel_l2": d.rel_l2, "max_diff": d.max_diff} for n, d in found.items()}
            for n, values in each.items():
                values["w1"] = wasserstein(base[n], weights[n])
            self._at(self.tensors, name, {"of": each})

    def _at(self, log: Log, name: str, values: dict[str, Any]) -> None:
        log.setdefault(name, []).append({"step": self.step, **values})

    def _record(self) -> dict[str, Any]:
        self.shadow.settle()
        return {
            "log": self.log,
            "distances": self.distances,
            "tensors": self.tensors,
            "direct": {
                name: {
                    "gradient": _judged(error),
                    "update": _judged(self.updates[name]),
                    "given_up": error.given_up,
                }
                for name, error in self.shadow.errors.items()
            },
            "sample": sample_of(self.baseline),
            "parameters": self.baseline.parameters,
        }


@contextlib.contextmanager
def _named(arm: str, number: int) -> Generator[None]:
    """What goes wrong in the block is told with the arm and the step, which count from 1."""
    try:
        yield
    except Exception as error:
        kind = UnsupportedError if isinstance(error, UnsupportedError) else CellError
        who = "direct error" if isinstance(error, CandidateError) else f"arm {arm!r}"
        raise kind(f"{who}, step {number + 1}: {told(error)}") from error


def _as_variant(arm: Arm) -> Variant:
    """How the baseline's model runs as this arm's would, for one call."""
    return autocast(arm.format) if arm.format else arm.variant


def _weights(runner: Runner) -> dict[str, Tensor]:
    """The weights as they are now, where the metrics are fast and exact: on the CPU."""
    return {name: w.detach().cpu() for name, w in parameters(runner.task.model).items()}


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def _metrics(found: WeightDistance) -> dict[str, float]:
    names = ("rel_l2", "rel_l1", "max_diff", "cosine", "ulp_mean", "sign_flips")
    return {name: getattr(found, name) for name in names}


def _judged(error: DirectError) -> dict[str, Any] | None:
    """The judgement as plain data; None where nothing was sampled."""
    return dataclasses.asdict(judge(error)) if error.plain.samples else None


def sample_of(runner: Runner) -> dict[str, Any] | None:
    """What a model makes of its workload's sample, as plain data; None where there is none."""
    if runner.task.sample is None:
        return None
    sample = runner.task.sample(runner.task.model)
    if not isinstance(sample, Pictures):
        return {"text": str(sample)}
    grey: Any = (sample.images * 255).round().int()
    return {"images": grey.tolist(), "captions": list(sample.captions)}
