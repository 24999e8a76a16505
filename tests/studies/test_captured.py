"""A tiny real capture: what the files hold, that they are kept, and that they come out the same."""

import pytest
import torch

from roundoff.operators.attention.operator import ATTENTION
from roundoff.operators.inputs import read_tensors
from roundoff.studies.low_precision_failure.captured import LAYER, SEED, capture_inputs
from roundoff.workloads import load_workload

STEPS = 2


def capture(folder, batches=2):
    told = []
    paths = capture_inputs(folder, steps=STEPS, batches=batches, tell=lambda *n: told.append(n))
    return paths, told


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return capture(tmp_path_factory.mktemp("made"))


def test_values_are_those_of_the_trained_layer(made):
    """Trained again by hand, the layer's V is what its projection gives."""
    task = load_workload("text").build(SEED, SEED)
    seen = []
    for step in range(STEPS):
        task.optimizer.zero_grad()
        task.loss(task.model, task.batch(step)).backward()
        task.optimizer.step()
        task.scheduler.step()
    project = task.model.model.layers[LAYER].self_attn.v_proj
    project.register_forward_hook(lambda module, args, out: seen.append(out.detach()))
    for number, path in enumerate(made[0]):
        task.loss(task.model, task.batch(STEPS + number))
        found = read_tensors(path, "qkv")
        assert torch.equal(found["v"], seen.pop().view(16, 64, 2, 16).transpose(1, 2))
        assert found["q"].shape == (16, 4, 64, 16)
        assert found["q"].dtype == found["k"].dtype == torch.float32


def test_a_cell_takes_them(made):
    from roundoff.formats import get_format
    from roundoff.studies.low_precision_failure.plan import trained

    cells = trained(made[0]).cells()
    problem = ATTENTION.draw(cells[0].parameters, get_format("bf16"), 0)
    assert torch.equal(problem.inputs["k"], read_tensors(made[0][0], "k")["k"].bfloat16().float())
    assert {c.parameters["mask"] for c in cells} == {"causal"}
    assert len({c.parameters["inputs"] for c in cells}) == 2
    assert {c.seed for c in cells} == {0}


def test_what_is_whole_is_kept_and_what_is_not_comes_out_the_same(made, tmp_path):
    paths, told = capture(tmp_path)
    first = [path.read_bytes() for path in paths]
    assert first == [path.read_bytes() for path in made[0]]
    assert told == [(0, 2), (1, 2), (2, 2)]
    paths[1].write_bytes(first[1][:-1])
    kept = paths[0].stat().st_mtime_ns
    assert capture(tmp_path) == (paths, told)
    assert [path.read_bytes() for path in paths] == first
    assert paths[0].stat().st_mtime_ns == kept
    assert capture(tmp_path) == (paths, [(2, 2)])


def test_nothing_of_the_process_is_left_changed(made, tmp_path):
    torch.manual_seed(3)
    threads, expected = torch.get_num_threads(), torch.rand(1)
    torch.manual_seed(3)
    capture(tmp_path, batches=1)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.rand(1), expected)
