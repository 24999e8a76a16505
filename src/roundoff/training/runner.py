"""Runner: one arm's training, a step at a time."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from roundoff.state import Snapshot
from roundoff.state.random_states import seeded
from roundoff.training.arms import Arm
from roundoff.training.experiment import Experiment
from roundoff.training.shadow import scalar
from roundoff.training.undisturbed import undisturbed
from roundoff.training.variants import AUTOCAST, autocast, parameters
from roundoff.workloads import Task, load_workload
from roundoff.workloads.protocol import generator_of

__all__ = ["Runner", "Step"]

OTHER_SEED = 1_000_003
"""From the baseline's initial seed to that of the arm `seed`."""

Step = dict[str, float]
LossOf = Callable[..., Tensor]


class Runner:
    """A task in training under a variant: `gradients(i)`, then `update()`, takes step i.

    Dropout and the like draw the same numbers in every arm: those of the data seed and the step.
    """

    def __init__(self, experiment: Experiment, seed: int, arm: Arm) -> None:
        self.arm, self.seed = arm, seed
        self.format = arm.format or experiment.format
        other = OTHER_SEED if arm.change == "initial seed" else 0
        self.task = load_workload(experiment.workload).build(seed + other, seed)
        _move(self.task, experiment.device)
        self.device = next(self.task.model.parameters()).device.type
        self.scaler: Any = torch.amp.GradScaler(self.device) if self.format == "fp16" else None
        self.order = _order(experiment.steps, seed) if arm.change == "data order" else None
        self.variants = (arm.variant,) if arm.variant.over else (experiment.variant, arm.variant)
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Runner:
        """Enter the variants for as long as the training lasts."""
        self.model = self.task.model
        for variant in self.variants:
            self.model = self._open.enter_context(variant.trained(self.model))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        """Leave the variants."""
        return self._open.__exit__(kind, error, trace)

    def gradients(self, number: int, loss_of: LossOf | None = None) -> Step:
        """Forward and backward pass of one step: its loss, and the norm of its gradient.

        `loss_of(loss, batch)` stands between, as a shadow does. Gradients are left in `.grad`,
        without loss scaling.
        """
        task = self.task
        batch = task.batch(number if self.order is None else self.order[number])
        task.optimizer.zero_grad()
        with seeded(self.seed * OTHER_SEED + number):
            with self.cast():
                loss = (
                    task.loss(self.model, batch) if loss_of is None else loss_of(task.loss, batch)
                )
            loss = scalar(loss)
            scaled: Any = loss if self.scaler is None else self.scaler.scale(loss)
            scaled.backward()
        if self.scaler is not None:
            self.scaler.unscale_(task.optimizer)
        return {"loss": loss.item(), "grad_norm": self._norm()}

    def update(self) -> Step:
        """The optimizer's step; under loss scaling, whether it was `skipped`."""
        taken: Step = {}
        if self.scaler is None:
            self.task.optimizer.step()
        else:
            before = self.scaler.get_scale()
            self.scaler.step(self.task.optimizer)
            self.scaler.update()
            taken["skipped"] = self.scaler.get_scale() < before
        if self.task.scheduler is not None:
            with warnings.catch_warnings():
                # A step that loss scaling skips looks to torch like a wrong order of calls.
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler", UserWarning)
                self.task.scheduler.step()
        return taken

    def update_by(self, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the optimizer would add to each weight for these gradients; nothing is changed."""
        before = self.capture(0)
        weights = parameters(self.task.model)
        start = {name: w.detach().clone() for name, w in weights.items()}
        own = {name: w.grad for name, w in weights.items()}
        for name, w in weights.items():
            w.grad = gradients.get(name)
        self.task.optimizer.step()
        moved = {name: w.detach() - start[name] for name, w in weights.items()}
        self.restore(before)
        for name, w in weights.items():
            w.grad = own[name]
        return moved

    def cast(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast to the arm's format."""
        if self.format not in AUTOCAST:
            return contextlib.nullcontext()
        return autocast(self.format).entered(self.task.model)

    def _norm(self) -> float:
        return math.sqrt(
            sum(
                float(p.grad.double().square().sum())
                for p in self.task.model.parameters()
                if p.grad is not None
            )
        )

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in parameters(self.task.model).values())

    def nudge(self, number: int = 0) -> None:
        """Move one weight by one ulp: the one whose ulp changes the loss of step `number` most.

        By first order, |ulp * gradient|; a weight of a matrix if there is any. The ulp of a small
        weight is lost in the rounding of the next update, which is larger by far.
        """
        pairs = zip(parameters(self.task.model).values(), self._felt(number), strict=True)
        trained = [(w.data, g) for w, g in pairs if g is not None]
        chosen = [pair for pair in trained if pair[0].ndim > 1] or trained
        effects = [_effect(w, g) for w, g in chosen]
        w, effect = max(zip((w for w, _ in chosen), effects, strict=True), key=_largest)
        place = torch.unravel_index(effect.argmax(), w.shape)
        w[place] = torch.nextafter(w[place], w.new_tensor(math.inf))

    def _felt(self, number: int) -> list[Tensor | None]:
        """The gradients of a step, with nothing changed by it."""
        task, batch = self.task, self.task.batch(number)
        autograd: Any = torch.autograd
        with undisturbed(task.model), seeded(self.seed * OTHER_SEED + number):
            with self.cast():
                loss = scalar(task.loss(self.model, batch))
            weights = [*parameters(task.model).values()]
            return list(autograd.grad(loss, weights, allow_unused=True))

    def capture(self, step: int) -> Snapshot:
        """All that its next step depends on."""
        task = self.task
        return Snapshot.capture(step, task.model, task.optimizer, task.scheduler, self.scaler)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot of its own."""
        task = self.task
        snapshot.restore(task.model, task.optimizer, task.scheduler, self.scaler)

    def branch_off(self, trunk: Runner) -> None:
        """Begin where another arm of the same workload is now; loss scaling begins anew."""
        scaler: Any = None if trunk.scaler is None else torch.amp.GradScaler(self.device)
        task = self.task
        trunk.capture(0).restore(task.model, task.optimizer, task.scheduler, scaler)


def _move(task: Task, device: str) -> None:
    """Take a task to where it trains; its loss takes the batches there."""
    if device != "cpu":
        task.model.to(device)
        if task.optimizer.state:
            task.optimizer.load_state_dict(task.optimizer.state_dict())  # to the parameters'


def _order(steps: int, seed: int) -> list[int]:
    return [int(i) for i in torch.randperm(steps, generator=generator_of(seed, 1))]


def _effect(w: Tensor, g: Tensor) -> Tensor:
    """How much a loss of gradient g feels one ulp of each weight; nothing where g is not finite."""
    ulp = torch.nextafter(w, w.new_tensor(math.inf)) - w
    return (ulp.double() * g.double()).abs().nan_to_num(0.0, 0.0, 0.0)


def _largest(pair: tuple[Tensor, Tensor]) -> float:
    return float(pair[1].max())
