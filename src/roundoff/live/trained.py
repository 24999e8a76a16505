"""A workload in training under a kernel that is watched: how far it is off, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from roundoff.intercept.swap import swapped
from roundoff.live.monitor import Monitor
from roundoff.live.watch import Watch
from roundoff.records import SCHEMA, Finding, Reading
from roundoff.state.random_states import seeded
from roundoff.store.json import digest
from roundoff.workloads import load_workload
from roundoff.workloads.protocol import Task

__all__ = ["WatchedTraining", "watched_line"]

LAYERS = 64
"""Layers that are looked at in a sampled step: all of a workload's."""


@dataclass(frozen=True)
class WatchedTraining:
    """What is trained: a workload under an attention, of which every `every`th step is sampled."""

    workload: str
    attention: str
    steps: int
    every: int
    seed: int = 0

    @property
    def id(self) -> str:
        """The id of its line in a run."""
        return f"watched-{digest(asdict(self))}"


def watched_line(
    asked: WatchedTraining, tell: Callable[[int], None] = lambda _: None
) -> dict[str, Any]:
    """Train, and return the line of a run that holds all readings; `tell` hears the steps taken."""
    task = load_workload(asked.workload).build(asked.seed, asked.seed)
    collected = _Collected()
    watch = Watch(
        of="attention", probes=("deviation", "gradients"), every=asked.every, layers=LAYERS
    )
    with (
        swapped(task.model, asked.attention),
        Monitor(task.model, task.optimizer, watch=[watch], to=[collected]),
    ):
        for step in range(asked.steps):
            with seeded(asked.seed + step):
                _train(task, step)
            tell(step + 1)
    return {
        "id": asked.id, "schema": SCHEMA, "status": "ok", "watched": asdict(asked),
        "live": [reading.to_record() for reading in collected.readings],
    }  # fmt: skip


def _train(task: Task, step: int) -> None:
    loss: Any = task.loss(task.model, task.batch(step))
    loss.backward()
    task.optimizer.step()
    task.optimizer.zero_grad()
    if task.scheduler is not None:
        task.scheduler.step()


class _Collected:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.readings: list[Reading] = []

    def write(
        self,
        step: int,  # noqa: ARG002 - each reading has it
        readings: Sequence[Reading],
        findings: Sequence[Finding],  # noqa: ARG002 - they are judged later
    ) -> None:
        """Keep the readings."""
        self.readings.extend(readings)

    def close(self) -> None:
        """There is nothing to close."""
