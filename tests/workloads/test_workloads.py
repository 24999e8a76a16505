"""Every workload is a pure function of its seeds, learns, and takes another attention."""

import contextlib
import random
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import torch
from torch import nn

from roundoff.errors import UnknownNameError
from roundoff.intercept.spy import spy
from roundoff.intercept.swap import swapped
from roundoff.state import Snapshot
from roundoff.workloads import WORKLOADS, Task, load_workload
from roundoff.workloads.protocol import generator_of

NAMES = list(WORKLOADS)
MATH = "aten::_scaled_dot_product_attention_math"
FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"


@pytest.fixture(params=NAMES)
def workload(request):
    pytest.importorskip("transformers")
    pytest.importorskip("diffusers")
    return load_workload(request.param)


def train(task, steps, start=0):
    losses = []
    for step in range(start, start + steps):
        task.optimizer.zero_grad()
        loss = task.loss(task.model, task.batch(step))
        loss.backward()
        task.optimizer.step()
        if task.scheduler is not None:
            task.scheduler.step()
        losses.append(loss.item())
    return losses


def weights(task):
    return {name: x.detach().clone() for name, x in task.model.named_parameters()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a | b)


def flat(batch):
    return [x.clone() for x in (batch if isinstance(batch, tuple) else (batch,))]


def test_rebuilding_and_rerunning_changes_no_bit(workload):
    first, second = workload.build(3, 4), workload.build(3, 4)
    assert first.model is not second.model
    one = train(first, 20)
    torch.rand(5)  # what others draw in between does not matter
    assert train(second, 20) == one
    assert same(weights(first), weights(second))


def test_the_seeds_are_two(workload):
    tasks = {seeds: workload.build(*seeds) for seeds in ((0, 0), (1, 0), (0, 1))}
    start = {seeds: weights(task) for seeds, task in tasks.items()}
    assert same(start[0, 0], start[0, 1])
    assert not same(start[0, 0], start[1, 0])
    batches = {seeds: flat(task.batch(7)) for seeds, task in tasks.items()}
    assert all(map(torch.equal, batches[0, 0], batches[1, 0]))
    assert not any(map(torch.equal, batches[0, 0], batches[0, 1]))


def test_nothing_is_drawn_from_the_global_random_state(workload):
    states = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()
    task = workload.build(0, 0)
    train(task, 2)
    task.sample(task.model)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (repr(np.random.get_state()), random.getstate()) == states[1:]


def test_a_batch_is_a_function_of_the_step(workload):
    task = workload.build(0, 0)
    later = flat(task.batch(9))
    assert not any(map(torch.equal, later, flat(task.batch(0))))
    assert all(map(torch.equal, later, flat(task.batch(9))))


def test_a_snapshot_goes_on_in_another_task(workload, tmp_path):
    straight, first, second = (workload.build(seed, 0) for seed in (0, 0, 1))
    losses = train(straight, 6)
    train(first, 3)
    parts = first.model, first.optimizer, first.scheduler
    Snapshot.capture(3, *parts).save(tmp_path / "s")
    Snapshot.load(tmp_path / "s").restore(second.model, second.optimizer, second.scheduler)
    assert train(second, 3, start=3) == losses[3:]
    assert same(weights(straight), weights(second))


@pytest.mark.parametrize(("name", "event"), [("torch-math", MATH), ("torch-cpu-flash", FLASH)])
def test_the_attention_is_the_one_swapped_in(workload, name, event):
    task = workload.build(0, 0)
    batch = task.batch(0)
    with swapped(task.model, name) as calls:
        task.loss(task.model, batch)
        _, events = spy(lambda: task.loss(task.model, batch))
    assert calls.count % 2 == 0
    assert {MATH, FLASH} & set(events) == {event}


def test_the_baselines_own_kernel_swapped_in_changes_no_bit(workload):
    plain, swap = workload.build(0, 0), workload.build(0, 0)
    losses = train(plain, 2)
    with swapped(swap.model, "torch-cpu-flash"):
        assert train(swap, 2) == losses
    # text's baseline repeats keys for shared heads as the kernel does
    assert same(weights(plain), weights(swap))


@pytest.mark.parametrize("name", ["fa2", "fa2@bf16", "torch-math", "torch-math@bf16"])
def test_other_attention_is_near_and_another(workload, name):
    task = workload.build(0, 0)
    batch = task.batch(0)

    def gradients(context):
        task.model.zero_grad()
        with context:
            loss = task.loss(task.model, batch)
            loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in task.model.parameters()])

    (loss, grad), (other, moved) = (
        gradients(contextlib.nullcontext()),
        gradients(swapped(task.model, name)),
    )
    far = 2**-6 if name.endswith("bf16") else 2**-18
    assert 0 < (moved - grad).norm() < far * grad.norm()
    assert abs(other - loss) < far * loss


def test_arms_in_lock_step_do_not_meet(workload):
    alone = {}
    for name in ("fa2@bf16", "torch-math"):
        task = workload.build(0, 0)
        with swapped(task.model, name):
            train(task, 3)
        alone[name] = weights(task)
    plain = workload.build(0, 0)
    train(plain, 3)
    arms = {name: workload.build(0, 0) for name in alone}
    beside = workload.build(0, 0)
    with contextlib.ExitStack() as stack:
        for name, task in arms.items():
            stack.enter_context(swapped(task.model, name))
        for step in range(3):
            for task in (*arms.values(), beside):
                train(task, 1, start=step)
    assert same(weights(beside), weights(plain))
    for name, task in arms.items():
        assert same(weights(task), alone[name]), name
    assert not same(alone["fa2@bf16"], weights(plain))


class TestText:
    @pytest.mark.slow
    def test_it_learns(self):
        losses = train(load_workload("text").build(0, 0), 200)
        assert losses[0] > 4.5
        assert sum(losses[-10:]) / 10 < 2.6

    def test_a_sample_is_text(self):
        task = load_workload("text").build(0, 0)
        assert task.sample(task.model) == task.sample(task.model)
        assert len(task.sample(task.model)) > 200


class TestGlyphs:
    def test_captions_name_what_is_drawn(self):
        from roundoff.workloads.glyphs import captioned

        images, captions = captioned()
        assert images.shape == (len(captions), 16, 16)
        assert images.min() == 0
        assert images.max() == 1
        assert images.amax((1, 2)).min() > 0.3
        named = {caption.partition(" S")[0] for caption in captions if caption.endswith(" SANS")}
        assert unicodedata.name("Ω").partition(" S")[0] in named

    def test_images_of_one_caption_are_one(self):
        from roundoff.workloads.glyphs import captioned

        captions = captioned()[1]
        assert len(set(captions)) == len(captions)

    def test_pictures(self):
        task = load_workload("text-to-image").build(0, 0)
        pictures = task.sample(task.model)
        assert pictures.images.shape == (len(pictures.captions), 16, 16)
        assert pictures.images.min() >= 0
        assert pictures.images.max() <= 1
        assert torch.equal(pictures.images, task.sample(task.model).images)

    def test_the_caption_matters(self):
        task = load_workload("text-to-image").build(0, 0)
        x, words, t, _ = task.batch(0)
        other = words.roll(1, 0)
        assert not torch.equal(task.model(x, t, words), task.model(x, t, other))
        # padding does not: a caption's words are all that is looked at
        task.model.words.weight.data[0] += 1
        padded = task.model(x, t, words)
        task.model.words.weight.data[0] -= 2
        assert torch.equal(padded, task.model(x, t, words))


def test_names_are_known_without_their_libraries():
    code = (
        "import sys; from roundoff.workloads import WORKLOADS; print(*WORKLOADS);"
        "assert not {'transformers', 'diffusers', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["text", "text-to-image"]


def test_a_missing_library_says_which_extra(monkeypatch):
    monkeypatch.setattr("roundoff.workloads.protocol.is_installed", lambda _: False)
    for workload in WORKLOADS.values():
        assert "pip install 'roundoff[train]'" in workload.missing()


def test_an_unknown_name():
    with pytest.raises(UnknownNameError, match="did you mean 'text'"):
        load_workload("txt")


def test_steps_have_numbers_of_their_own():
    drawn = {
        tuple(torch.rand(4, generator=generator_of(seed, step)).tolist())
        for seed in range(3)
        for step in range(50)
    }
    assert len(drawn) == 150


def test_a_task_is_a_value():
    model = nn.Linear(1, 1)
    task = Task(model, torch.optim.SGD(model.parameters()), lambda _: None, lambda m, b: b)
    assert (task.scheduler, task.sample) == (None, None)
