"""What a training run needs, as a value, and the table of those that come with roundoff.

A `Task` is built anew for every run, from two seeds; building it draws nothing from the
global random state, and neither does a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from roundoff.registry import Registry, is_installed

__all__ = ["WORKLOADS", "Pictures", "Task", "Workload", "generator_of", "needs"]


@dataclass(frozen=True)
class Pictures:
    """Grey images [n, height, width] in [0, 1], and what each should show."""

    images: Tensor
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """Everything that one training run needs.

    `batch(i)` is the batch of step i, a pure function of i and the data seed: it draws from a
    generator of its own. `loss` calls the model that it is given, which may be a wrapped or
    compiled one, and returns a scalar. `sample` makes what a report shows: of `text` a string, of
    `text-to-image` a `Pictures`.
    """

    model: nn.Module
    optimizer: Optimizer
    batch: Callable[[int], Any]
    loss: Callable[[nn.Module, Any], Tensor]
    scheduler: LRScheduler | None = None
    sample: Callable[[nn.Module], Any] | None = None


@dataclass(frozen=True)
class Workload:
    """A model and data to train it on: `build(init_seed, data_seed)` makes a task.

    `missing` says why it cannot run here and what to install (None: it can).
    """

    name: str
    doc: str
    build: Callable[[int, int], Task]
    missing: Callable[[], str | None]


WORKLOADS: Registry[Workload] = Registry("workload")
WORKLOADS.add_place("text", "roundoff.workloads.text:TEXT")
WORKLOADS.add_place("text-to-image", "roundoff.workloads.glyphs:GLYPHS")


def needs(*libraries: str) -> Callable[[], str | None]:
    """The `missing` of a workload that needs libraries of the extra `train`."""

    def missing() -> str | None:
        absent = [library for library in libraries if not is_installed(library)]
        if not absent:
            return None
        return f"{' and '.join(absent)} (pip install 'roundoff[train]')"

    return missing


def generator_of(data_seed: int, step: int) -> torch.Generator:
    """The random numbers of one step: others for each step and each seed, on the CPU.

    Torch's generator takes 32 bits of a seed: up to a million steps no two steps share one.
    """
    return torch.Generator().manual_seed((data_seed * 1_000_003 + step) % 2**32)
