"""A monitor in Hugging Face's Trainer: a callback.

python examples/live/huggingface_trainer.py
"""

import tempfile

from planted import build, options, say
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

import roundoff
from roundoff.live.integrations.huggingface import MonitorCallback


class Text(Dataset):
    """The batches of the workload, a stretch an item."""

    def __init__(self, task, steps):
        self.rows = [row for step in range(steps) for row in task.batch(step)[:, :-1]]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return {"input_ids": self.rows[i], "labels": self.rows[i]}


class Step(TrainerCallback):
    """Tells the planted head which step it is."""

    def __init__(self, planted):
        self.planted = planted

    def on_step_begin(self, args, state, control, **of):
        self.planted.step = state.global_step


def train(steps=160, start=100, every=5):
    task, planted = build(start)
    watching = MonitorCallback(
        watch=[roundoff.Watch(of="attention", probes=("deviation",), every=every)]
    )
    with tempfile.TemporaryDirectory() as folder:
        how = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=16, use_cpu=True,
            save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True,
        )  # fmt: skip
        data = Text(task, steps)
        trainer = Trainer(
            task.model, how, train_dataset=data, optimizers=(task.optimizer, task.scheduler),
            callbacks=[Step(planted), watching],
        )  # fmt: skip
        trainer.train()
    return watching.monitor


if __name__ == "__main__":
    say(train(*options()))
