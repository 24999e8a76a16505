"""Hugging Face's Trainer does not see the monitor, which keeps to its steps."""

import functools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from roundoff.errors import UnsupportedError
from roundoff.live.integrations.attached import Attached
from roundoff.live.watch import Watch
from roundoff.store import Run

from ..exact import same
from .trainers import (
    ALL,
    STEPS,
    example,
    finds_the_planted_head,
    left,
    llama,
    rows,
    untouched,
)

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
huggingface = pytest.importorskip("roundoff.live.integrations.huggingface")
MonitorCallback = huggingface.MonitorCallback

pytestmark = pytest.mark.filterwarnings("ignore")
WAYS = {
    "plain": {},
    "accumulated": {"gradient_accumulation_steps": 2},
    "bf16": {"bf16": True},
}


def trainer(folder, *callbacks, **how):
    data = [{"input_ids": row, "labels": row} for row in rows(2 * STEPS)]
    arguments = {
        "max_steps": STEPS, "per_device_train_batch_size": 2, "learning_rate": 1e-2,
        "use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_steps": 1,
        "save_strategy": "no", **how,
    }  # fmt: skip
    return transformers.Trainer(
        llama(),
        transformers.TrainingArguments(str(folder), **arguments),
        train_dataset=data,
        callbacks=[*callbacks],
    )


def trained(folder, *callbacks, **how):
    running = trainer(folder, *callbacks, **how)
    running.train()
    assert untouched(running.model)
    log = running.state.log_history
    return left(running.model, [x for row in log if "loss" in row for x in (row["loss"],)])


@functools.cache
def alone(way, folder):
    return trained(folder, **WAYS[way])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trainer")


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_changed(way, folder):
    callback = MonitorCallback(watch=ALL)
    assert same(trained(folder, callback, **WAYS[way]), alone(way, folder))
    seen = callback.monitor.readings
    assert {r.step for r in seen} == {STEPS - 1}
    assert {r.of for r in seen} == {w.of for w in ALL}
    ratios = [r.values["dq_ratio"] for r in seen if r.of == "attention"]
    assert len(ratios) == 4
    assert way == "bf16" or all(0.1 < ratio < 4 for ratio in ratios)


def test_a_disturbance_would_be_seen(folder, monkeypatch):
    monkeypatch.setattr(Attached, "follow", lambda self, step: torch.rand(1))
    assert not same(trained(folder, MonitorCallback(watch=ALL)), alone("plain", folder))


def test_steps_are_the_trainers_and_go_on_from_a_checkpoint(tmp_path):
    watch = [Watch(of="gradients", names="model.norm.weight", every=1)]
    numbers = []

    class Numbers(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **of):
            numbers.append((state.global_step, callback.monitor.step))

    callback = MonitorCallback(watch=watch, to=tmp_path / "run")
    how = {"save_strategy": "steps", "save_steps": 2}
    trainer(tmp_path, Numbers(), callback, **how | {"max_steps": 2}).train()
    assert Run.open(tmp_path / "run").rows()[-1]["step"] == 1
    trainer(tmp_path, Numbers(), callback, **how).train(str(tmp_path / "checkpoint-2"))
    assert numbers == [(step, step) for step in range(STEPS)]
    assert sorted(row["step"] for row in Run.open(tmp_path / "run").rows()) == [0, 1, 2, 3]


def attached(callback, **how):
    """The callback's first moment, with arguments such as a trainer has."""
    model = nn.Sequential(nn.Linear(2, 2))
    args = SimpleNamespace(**{"n_gpu": 1, "torch_compile": False} | how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    of = {"model": model, "optimizer": optimizer}
    callback.on_train_begin(args, SimpleNamespace(global_step=0), None, **of)
    return model, optimizer


def test_a_step_that_a_scaler_skips_counts():
    callback = MonitorCallback(watch=[Watch(of="activations", every=1)])
    model, optimizer = attached(callback)
    model(torch.full((1, 2), 1e6)).sum().backward()  # and its scaler skips the update
    optimizer.zero_grad()
    callback.on_step_begin(None, SimpleNamespace(global_step=1), None)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert {r.step for r in callback.monitor.readings} == {1}
    assert all(r.values["amax"] < 1e3 for r in callback.monitor.readings)
    assert callback.monitor.skipped == 1


def test_what_a_compiled_model_hides_is_left_out_or_refused():
    callback = MonitorCallback(every=1)
    model, optimizer = attached(callback, torch_compile=True)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert {r.of for r in callback.monitor.readings} == {"gradients", "parameters"}
    with pytest.raises(UnsupportedError, match=r"runs inside a torch\.compile graph"):
        attached(MonitorCallback(watch=ALL[-1:]), torch_compile=True)


def test_copies_of_a_model_are_refused():
    with pytest.raises(UnsupportedError, match=r"trains on 2 GPUs.*start it by torchrun"):
        attached(MonitorCallback(), n_gpu=2)


def test_a_failed_training_is_left_behind():
    callback = MonitorCallback(every=1)
    first, _ = attached(callback)
    assert not untouched(first)
    attached(callback)
    assert untouched(first)


def test_the_example_names_the_planted_head(monkeypatch):
    finds_the_planted_head(example("huggingface_trainer", monkeypatch).train)
