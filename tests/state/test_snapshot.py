"""A run that stops, is saved and goes on in fresh objects is the run that never stopped."""

import random

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, MultiStepLR, OneCycleLR

from roundoff.errors import RoundoffError, RunError, UsageError
from roundoff.state import Snapshot

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "adamw-foreach-amsgrad": lambda p: torch.optim.AdamW(p, foreach=True, amsgrad=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "plain": lambda p: torch.optim.SGD(p, lr=1e-2),
}
SCHEDULERS = {
    "none": lambda o: None,
    "cosine": lambda o: CosineAnnealingLR(o, 20),
    "steps": lambda o: MultiStepLR(o, [3, 3, 7]),
    "cycle": lambda o: OneCycleLR(o, 0.1, total_steps=30),
    "lambda": lambda o: LambdaLR(o, lambda step: 0.9**step),
}


class Run:
    """A model with buffers of both kinds and dropout, and losses that overflow now and then."""

    def __init__(self, optimizer, scheduler, scaled, seed=0):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5),
                                   nn.Linear(8, 1))  # fmt: skip
        self.model.register_buffer("drift", torch.ones(1), persistent=False)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.scheduler = SCHEDULERS[scheduler](self.optimizer)
        self.scaler = torch.amp.GradScaler("cpu", growth_interval=2) if scaled else None

    def parts(self):
        return self.model, self.optimizer, self.scheduler, self.scaler

    def step(self, number):
        x = torch.randn(16, 4) + random.random() + float(np.random.rand())
        loss = (self.model(x).square() * self.model.drift.clone()).mean()
        self.model.drift.mul_(1.01)
        self.optimizer.zero_grad()
        if self.scaler is None:
            loss.backward()
            self.optimizer.step()
        else:
            self.scaler.scale(loss * (1e38 if number == 2 else 1)).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if self.scheduler is not None:
            self.scheduler.step()


def seed_everything():
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)


def bits(x):
    return x.detach().reshape(-1).view(torch.uint8)


def assert_same(a, b):
    left, right = Snapshot.capture(0, *a.parts()), Snapshot.capture(0, *b.parts())
    assert left.rest == right.rest
    assert list(left.tensors) == list(right.tensors)
    for name, x in left.tensors.items():
        assert torch.equal(bits(x), bits(right.tensors[name])), name


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_run_is_the_run(tmp_path, optimizer, scheduler, scaled):
    straight, first = (Run(optimizer, scheduler, scaled) for _ in range(2))
    seed_everything()
    for number in range(8):
        straight.step(number)
    after = torch.rand(3), np.random.rand(3), random.random()
    seed_everything()
    for number in range(4):
        first.step(number)
    Snapshot.capture(4, *first.parts()).save(tmp_path / "s.safetensors")
    torch.rand(7), np.random.rand(7), random.random()
    second = Run(optimizer, scheduler, scaled, seed=5)
    snapshot = Snapshot.load(tmp_path / "s.safetensors")
    snapshot.restore(*second.parts())
    assert snapshot.step == 4
    for number in range(4, 8):
        second.step(number)
    assert torch.equal(torch.rand(3), after[0])
    assert np.array_equal(np.random.rand(3), after[1])
    assert random.random() == after[2]
    seed_everything()
    assert_same(straight, second)


def test_a_snapshot_does_not_change_with_the_run():
    run = Run("adamw", "cosine", False)
    run.step(0)
    snapshot = Snapshot.capture(1, *run.parts())
    before = {name: x.clone() for name, x in snapshot.tensors.items()}
    rest = repr(snapshot.rest)
    snapshot.restore(*run.parts())
    run.step(1)
    assert repr(snapshot.rest) == rest
    assert all(torch.equal(before[name], x) for name, x in snapshot.tensors.items())


def test_special_values_and_wide_moments_survive(tmp_path):
    model = nn.Linear(4, 1, bias=False, dtype=torch.bfloat16)
    model.weight.data = torch.tensor([[float("nan"), -0.0, float("inf"), 1e-40]]).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=float("inf"), momentum=0.9)
    optimizer.state[model.weight]["momentum_buffer"] = torch.full((1, 4), 1 / 3)
    Snapshot.capture(0, model, optimizer).save(tmp_path / "s")
    other = nn.Linear(4, 1, bias=False, dtype=torch.bfloat16)
    fresh = torch.optim.SGD(other.parameters(), lr=1.0, momentum=0.9)
    Snapshot.load(tmp_path / "s").restore(other, fresh)
    assert torch.equal(bits(other.weight), bits(model.weight))
    moment = fresh.state[other.weight]["momentum_buffer"]
    assert moment.dtype == torch.float32
    assert torch.equal(moment, torch.full((1, 4), 1 / 3))
    assert fresh.param_groups[0]["lr"] == float("inf")


def test_a_compiled_model_restores_into_a_plain_one():
    model = nn.Linear(2, 2)
    compiled = torch.compile(model)
    snapshot = Snapshot.capture(0, compiled, torch.optim.SGD(compiled.parameters()))
    other = nn.Linear(2, 2)
    snapshot.restore(other, torch.optim.SGD(other.parameters()))
    assert torch.equal(other.weight, model.weight)


class TestDamage:
    @pytest.fixture
    def path(self, tmp_path):
        run = Run("adamw", "none", False)
        run.step(0)
        path = tmp_path / "s.safetensors"
        Snapshot.capture(1, *run.parts()).save(path)
        return path

    @pytest.mark.parametrize("at", [0, 3, 9, 400, 3000, -1])
    def test_a_changed_byte_is_found(self, path, at):
        data = bytearray(path.read_bytes())
        data[at] ^= 1
        path.write_bytes(data)
        with pytest.raises(RunError) as raised:
            Snapshot.load(path)
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize("length", [0, 5, 100, -1])
    def test_a_short_file_is_found(self, path, length):
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(RunError, match="damaged"):
            Snapshot.load(path)

    def test_no_file(self, tmp_path):
        with pytest.raises(RunError, match="cannot read"):
            Snapshot.load(tmp_path / "nothing")

    def test_another_safetensors_file(self, tmp_path):
        from safetensors.torch import save_file

        save_file({"x": torch.ones(1)}, tmp_path / "x")
        with pytest.raises(RunError, match="another safetensors file"):
            Snapshot.load(tmp_path / "x")

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"),
                                       SafetensorError("No space left on device")])  # fmt: skip
    def test_a_failed_save_leaves_the_old_file(self, path, monkeypatch, error):
        before = path.read_bytes()

        def fail(_, place, **__):
            place.write_bytes(b"half")
            raise error

        monkeypatch.setattr("safetensors.torch.save_file", fail)
        with pytest.raises(RunError, match="No space left"):
            Snapshot.load(path).save(path)
        assert path.read_bytes() == before
        assert [p.name for p in path.parent.iterdir()] == [path.name]


class TestAnotherTask:
    def restore(self, **parts):
        run = Run("adamw", "cosine", False)
        Snapshot.capture(0, *run.parts()).restore(
            **{"model": run.model, "optimizer": run.optimizer, "scheduler": run.scheduler} | parts
        )

    def test_a_missing_scheduler(self):
        with pytest.raises(UsageError, match="has a scheduler, and no scheduler was given"):
            self.restore(scheduler=None)

    def test_another_model(self):
        with pytest.raises(UsageError, match=r"another model: '.*' is .* in the snapshot"):
            self.restore(model=nn.Linear(2, 2))

    def test_another_optimizer(self):
        optimizer = torch.optim.AdamW(nn.Linear(1, 1).parameters())
        with pytest.raises(UsageError, match="another optimizer"):
            self.restore(optimizer=optimizer)

    def test_state_that_is_no_plain_data(self):
        optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))])
        optimizer.param_groups[0]["thing"] = object()
        with pytest.raises(RoundoffError, match=r"optimizer.param_groups.0.thing is a object"):
            Snapshot.capture(0, nn.Linear(1, 1), optimizer)


def test_a_snapshot_fits_a_model_with_wrappers_inside():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model, other = (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2))
    other[0] = checkpoint_wrapper(other[0])
    Snapshot.capture(0, model, torch.optim.SGD(model.parameters())).restore(
        other, torch.optim.SGD(other.parameters())
    )
    assert all(map(torch.equal, model.parameters(), other.parameters()))
