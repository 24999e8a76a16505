"""A monitor as a callback of Hugging Face's Trainer.

Steps have the number that `state.global_step` has while they run: the first is 0. A step that a
scaler skips counts there, and so it does here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from roundoff.errors import UnsupportedError
from roundoff.live.integrations.attached import Attached
from roundoff.registry import require

if TYPE_CHECKING:
    Callback = object
else:
    Callback = require(
        "transformers", extra="train", purpose="the callback of Hugging Face's Trainer"
    ).TrainerCallback

__all__ = ["MonitorCallback"]


class MonitorCallback(Attached, Callback):
    """`Trainer(..., callbacks=[MonitorCallback(every=100, to="runs/live")])`.

    Takes `watch`, `every` and `to` as `Monitor` does, and attaches to the model and the
    optimizer when the training begins, or goes on from a checkpoint. With `torch_compile`, what
    runs inside the graph cannot be watched. `monitor` has the readings and findings.

    `UnsupportedError` for one process with several GPUs (nn.DataParallel), which trains on copies.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **of: Any) -> None:  # noqa: ARG002
        """Attach."""
        if args.n_gpu > 1:
            raise UnsupportedError(
                f"one process trains on {args.n_gpu} GPUs, on copies of the model that cannot be "
                "watched; expected a process a GPU: start it by torchrun, or show it one GPU"
            )
        model: nn.Module = of["model"]
        optimizer: Any = of["optimizer"]
        if type(optimizer).__name__ == "AcceleratedOptimizer":
            optimizer = optimizer.optimizer
        self.attach(model, optimizer, step=state.global_step, compiled=bool(args.torch_compile))

    def on_step_begin(self, args: Any, state: Any, control: Any, **of: Any) -> None:  # noqa: ARG002
        """Keep to the trainer's number of the step."""
        self.follow(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **of: Any) -> None:  # noqa: ARG002
        """Take everything out."""
        self.detach()
