"""A workload of the user's, by module and by file, good and bad."""

import random

import numpy as np
import pytest
import torch

from roundoff.errors import RoundoffError, UnknownNameError, UsageError
from roundoff.workloads import load_workload

GOOD = """
import random, numpy, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def parts():
    model = nn.Linear(3, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)

def loss(model, batch):
    return model(batch[0]).square().mean()

def shuffled():
    data = TensorDataset(torch.arange(30.0).view(10, 3))
    return *parts(), DataLoader(data, batch_size=4, shuffle=True), loss

def listed():
    return *parts(), [(torch.full((1, 3), float(i)),) for i in range(3)], loss

def once():
    return *parts(), iter([(torch.ones(1, 3),)] * 3), loss

def by_step(data_seed):
    return *parts(), lambda step: (torch.full((1, 3), float(step + data_seed)),), loss

def drawn():
    return *parts(), lambda step: (torch.rand(2, 3) + random.random() + numpy.random.rand(),), loss

def task(init_seed, data_seed):
    from roundoff.workloads import Task
    return Task(*parts(), lambda step: (torch.full((1, 3), float(init_seed)),), loss)

def nothing(): return None
def three(): return 1, 2, 3
def no_model(): return "m", None, [], loss
def no_optimizer(): return parts()[0], "sgd", [], loss
def no_batches(): return *parts(), 7, loss
def no_loss(): return *parts(), [], "mse"
def empty(): return *parts(), [], loss
"""


@pytest.fixture
def place(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    return lambda name: f"{path}:{name}"


@pytest.mark.parametrize("name", ["shuffled", "listed", "once", "by_step", "drawn", "task"])
def test_good_ones_train(place, name):
    task = load_workload(place(name)).build(0, 0)
    for step in range(3):
        task.optimizer.zero_grad()
        task.loss(task.model, task.batch(step)).backward()
        task.optimizer.step()


def test_the_seeds(place):
    build = load_workload(place("shuffled")).build
    first, again, other = build(0, 0), build(0, 0), build(1, 0)
    assert torch.equal(first.model.weight, again.model.weight)
    assert not torch.equal(first.model.weight, other.model.weight)
    batches = [first.batch(step)[0] for step in range(7)]
    torch.rand(3)
    assert all(torch.equal(x, again.batch(step)[0]) for step, x in enumerate(batches))
    assert all(torch.equal(x, other.batch(step)[0]) for step, x in enumerate(batches))
    moved = build(0, 1)
    assert not all(torch.equal(x, moved.batch(step)[0]) for step, x in enumerate(batches))
    assert load_workload(place("by_step")).build(0, 5).batch(2)[0][0, 0] == 7
    assert load_workload(place("task")).build(6, 0).batch(2)[0][0, 0] == 6


def test_batches_are_wound_forward_and_back(place):
    task = load_workload(place("shuffled")).build(0, 0)
    batches = [task.batch(step)[0] for step in range(8)]  # three epochs of three, almost
    assert not torch.equal(batches[0], batches[3])
    assert torch.equal(task.batch(1)[0], batches[1])
    assert torch.equal(task.batch(7)[0], batches[7])
    assert torch.equal(task.batch(7)[0], batches[7])
    fresh = load_workload(place("shuffled")).build(0, 0)
    assert torch.equal(fresh.batch(5)[0], batches[5])


def test_a_function_of_the_step_that_draws(place):
    build = load_workload(place("drawn")).build
    task = build(0, 0)
    batches = [task.batch(step)[0] for step in range(3)]
    assert len({x.sum().item() for x in batches}) == 3
    assert torch.equal(build(1, 0).batch(2)[0], batches[2])
    assert not torch.equal(build(0, 1).batch(2)[0], batches[2])


def test_settings_of_its_module_are_in_force(tmp_path):
    path = tmp_path / "doubled.py"
    path.write_text("import torch\ntorch.set_default_dtype(torch.float64)\n" + GOOD)
    workload = load_workload(f"{path}:listed")
    assert torch.get_default_dtype() == torch.float32
    try:
        assert workload.build(0, 0).model.weight.dtype == torch.float64
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", ["shuffled", "drawn"])
def test_the_global_random_state_is_left_alone(place, name):
    states = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()
    task = load_workload(place(name)).build(0, 0)
    for step in (0, 4, 1):
        task.batch(step)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (repr(np.random.get_state()), random.getstate()) == states[1:]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nothing", r"returned NoneType; expected \(model, optimizer, batches, loss\)"),
        ("three", "returned int, int, int; expected"),
        ("no_model", "a model of type str; expected a torch Module"),
        ("no_optimizer", "an optimizer of type str; expected a torch Optimizer"),
        ("no_batches", "batches of type int; expected an iterable"),
        ("no_loss", "a loss of type str; expected a function"),
    ],
)
def test_bad_ones_in_one_line(place, name, says):
    with pytest.raises(UsageError, match=says) as raised:
        load_workload(place(name)).build(0, 0)
    assert "\n" not in str(raised.value)


def test_batches_that_end(place):
    with pytest.raises(UsageError, match="ended before step 0"):
        load_workload(place("empty")).build(0, 0).batch(0)
    task = load_workload(place("once")).build(0, 0)
    task.batch(2)
    with pytest.raises(UsageError, match="ended before step 3"):
        task.batch(3)
    with pytest.raises(UsageError, match="cannot go back to step 0"):
        task.batch(0)


def test_a_function_that_is_not_there(place):
    with pytest.raises(UnknownNameError, match="did you mean 'shuffled'"):
        load_workload(place("shufled"))
    with pytest.raises(RoundoffError, match="cannot import 'nowhere'"):
        load_workload("nowhere:build")


def test_a_function_that_raises(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("def build(): return 1 / 0\ndef more(x): pass\n")
    with pytest.raises(UsageError, match="raised ZeroDivisionError: division by zero"):
        load_workload(f"{path}:build").build(0, 0)
    with pytest.raises(UsageError, match=r"raised TypeError: .* missing 1 required"):
        load_workload(f"{path}:more").build(0, 0)
