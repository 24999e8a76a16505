"""A monitor in Lightning's Trainer: a callback.

python examples/live/lightning_trainer.py
"""

import lightning.pytorch as pl
from planted import build, options, say
from torch.utils.data import DataLoader

import roundoff
from roundoff.live.integrations.lightning import MonitorCallback


class Module(pl.LightningModule):
    """The task of the workload."""

    def __init__(self, task, planted):
        super().__init__()
        self.model, self.task, self.planted = task.model, task, planted

    def training_step(self, batch, i):
        self.planted.step = self.global_step
        return self.task.loss(self.model, batch)

    def configure_optimizers(self):
        return [self.task.optimizer], [{"scheduler": self.task.scheduler, "interval": "step"}]


def train(steps=160, start=100, every=5):
    task, planted = build(start)
    watching = MonitorCallback(
        watch=[roundoff.Watch(of="attention", probes=("deviation",), every=every)]
    )
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", devices=1, callbacks=[watching], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    batches = DataLoader([task.batch(step) for step in range(steps)], batch_size=None)
    trainer.fit(Module(task, planted), batches)
    return watching.monitor


if __name__ == "__main__":
    say(train(*options()))
