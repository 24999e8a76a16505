"""What every callback does: make a monitor when a training begins, and take it out at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from roundoff.live.monitor import Monitor
from roundoff.live.setup import To, places_of, watches_of
from roundoff.live.watch import Of, Watch

__all__ = ["Attached"]


class Attached:
    """A callback's monitor, and the options that it is made with; those of `Monitor`.

    `monitor` is that of the last training, None before the first.
    """

    def __init__(
        self,
        *,
        watch: Watch | Sequence[Watch | Of] | str | Path | None = None,
        every: int | None = None,
        to: To = None,
    ) -> None:
        super().__init__()
        self.monitor: Monitor | None = None
        watches_of(watch, every)  # what is wrong is told here, and not when the training begins
        self._watch, self._every = watch, every
        self._to = places_of(to)

    def attach(
        self, model: nn.Module, optimizer: Optimizer, *, step: int, compiled: bool = False
    ) -> None:
        """Begin to watch; `compiled` says that what runs is the graph of `model` as a whole."""
        self.detach()  # where a training before has failed
        library: Any = torch
        self.monitor = Monitor(
            library.compile(model) if compiled else model,
            optimizer,
            watch=self._watch,
            every=self._every,
            to=self._to,
            first_step=step,
        )

    def follow(self, step: int) -> None:
        """Take over the trainer's number of the step that comes."""
        if self.monitor is not None:
            self.monitor.at(step)

    def detach(self) -> None:
        """Take the monitor out; its readings and findings stay."""
        if self.monitor is not None:
            self.monitor.close()
