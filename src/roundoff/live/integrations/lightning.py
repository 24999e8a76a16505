"""A monitor as a callback of Lightning's Trainer, of `lightning` or of `pytorch_lightning`.

Steps have the number that `trainer.global_step` has while they run: the first is 0.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from roundoff.errors import UnsupportedError
from roundoff.live.integrations.attached import Attached
from roundoff.registry import is_installed, require


def _package() -> str:
    """The one that is in use; either's callbacks work in the other's trainer."""
    other = "pytorch_lightning"
    if "lightning" in sys.modules or (other not in sys.modules and is_installed("lightning")):
        return "lightning.pytorch"
    return other if is_installed(other) else "lightning.pytorch"


if TYPE_CHECKING:
    Callback = object
else:
    Callback = require(_package(), extra="live", purpose="the callback of Lightning").Callback

__all__ = ["MonitorCallback"]


class MonitorCallback(Attached, Callback):
    """`Trainer(..., callbacks=[MonitorCallback(every=100, to="runs/live")])`.

    Takes `watch`, `every` and `to` as `Monitor` does, and attaches to the LightningModule
    and its optimizer when `fit` begins, or goes on from a checkpoint; optimization may be
    automatic or manual. `monitor` has the readings and findings.

    `UnsupportedError` for several optimizers: give each a `Monitor` in `on_train_start`.
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach."""
        optimizers: list[Any] = trainer.optimizers
        if len(optimizers) != 1:
            raise UnsupportedError(
                f"{type(pl_module).__name__} has {len(optimizers)} optimizers; expected one: make "
                "a roundoff.Monitor for each, with the part of the model that it trains"
            )
        compiled = getattr(pl_module, "_compiler_ctx", None) is not None
        self.attach(pl_module, optimizers[0], step=trainer.global_step, compiled=compiled)

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        """Keep to the trainer's number of the step."""
        self.follow(trainer.global_step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Take everything out."""
        self.detach()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
        """Take everything out: the training has failed."""
        self.detach()
