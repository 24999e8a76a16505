"""Lightning's Trainer does not see the monitor, which keeps to its steps."""

import functools
import importlib

import pytest
import torch

from roundoff.errors import UnsupportedError
from roundoff.live.integrations.attached import Attached
from roundoff.live.watch import Watch

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

pl = pytest.importorskip("lightning.pytorch")
pytest.importorskip("transformers")
MonitorCallback = importlib.import_module("roundoff.live.integrations.lightning").MonitorCallback

pytestmark = pytest.mark.filterwarnings("ignore")
WAYS = {
    "plain": {},
    "accumulated": {"accumulate_grad_batches": 2},
    "bf16": {"precision": "bf16-mixed"},
    "manual": {},
}


def module_of(library):
    class Module(library.LightningModule):
        def __init__(self, manual=False, optimizers=1, fails_at=None):
            super().__init__()
            self.model, self.losses = llama(), []
            self.automatic_optimization = not manual
            self.made, self.fails_at = optimizers, fails_at
            self.watched = []

        def training_step(self, batch, i):
            if i == self.fails_at:
                raise ArithmeticError("planted")
            loss = self.model(input_ids=batch, labels=batch).loss
            self.losses.append(loss.item())
            for callback in self.trainer.callbacks:
                if isinstance(callback, MonitorCallback):
                    self.watched.append((self.global_step, callback.monitor.step))
            if self.automatic_optimization:
                return loss
            self.manual_backward(loss)
            self.optimizers().step()
            self.optimizers().zero_grad()
            return None

        def configure_optimizers(self):
            made = [torch.optim.AdamW(self.parameters(), lr=1e-2) for _ in range(self.made)]
            return made if len(made) > 1 else made[0]

    return Module


def fit(module, *callbacks, library=pl, ckpt_path=None, **how):
    batches = torch.stack(rows(2 * STEPS)).split(2)
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    trainer = library.Trainer(
        **{"max_steps": STEPS, **how}, accelerator="cpu", devices=1, callbacks=[*callbacks],
        logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, loader, ckpt_path=ckpt_path)
    return trainer


def trained(way, *callbacks):
    module = module_of(pl)(manual=way == "manual")
    fit(module, *callbacks, **WAYS[way])
    assert untouched(module)
    return left(module, module.losses)


@functools.cache
def alone(way):
    return trained(way)


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_changed(way):
    callback = MonitorCallback(watch=ALL)
    assert same(trained(way, callback), alone(way))
    seen = callback.monitor.readings
    assert {r.step for r in seen} == {STEPS - 1}
    assert {r.of for r in seen} == {w.of for w in ALL}
    ratios = [r.values["dq_ratio"] for r in seen if r.of == "attention"]
    assert len(ratios) == 4
    assert way == "bf16" or all(0.1 < ratio < 4 for ratio in ratios)


def test_a_disturbance_would_be_seen(monkeypatch):
    monkeypatch.setattr(Attached, "follow", lambda self, step: torch.rand(1))
    assert not same(trained("plain", MonitorCallback(watch=ALL)), alone("plain"))


def test_steps_are_the_trainers_and_go_on_from_a_checkpoint(tmp_path):
    watch = [Watch(of="gradients", names="model.model.norm.weight", every=1)]
    callback, module = MonitorCallback(watch=watch), module_of(pl)()
    fit(module, callback, max_steps=2).save_checkpoint(tmp_path / "two.ckpt")
    assert module.watched == [(0, 0), (1, 1)]
    module = module_of(pl)()
    fit(module, callback, ckpt_path=tmp_path / "two.ckpt")
    assert module.watched == [(2, 2), (3, 3)]


def test_several_optimizers_are_refused():
    with pytest.raises(UnsupportedError, match=r"2 optimizers; expected one: make a roundoff\.Mon"):
        fit(module_of(pl)(manual=True, optimizers=2), MonitorCallback())


def test_an_exception_takes_everything_out():
    module = module_of(pl)(fails_at=1)
    with pytest.raises(ArithmeticError, match="planted"):
        fit(module, MonitorCallback(watch=ALL))
    assert untouched(module)


def test_the_other_package():
    other = pytest.importorskip("pytorch_lightning")
    callback = MonitorCallback(watch=ALL[1:2])
    fit(module_of(other)(), callback, library=other)
    assert callback.monitor.step == STEPS


def test_the_example_names_the_planted_head(monkeypatch):
    finds_the_planted_head(example("lightning_trainer", monkeypatch).train)
