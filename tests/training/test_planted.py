"""Candidates of which it is known whether they are noise or bias, beside the workload text."""

import pytest
import torch

from roundoff.training.shadow import Shadow
from roundoff.workloads import load_workload

from .plants import planted


def judged(seed, rate=None, only=""):
    pytest.importorskip("transformers")
    task = load_workload("text").build(seed, seed)
    plants = {name: plant for name, plant in planted(seed).items() if only in name}
    for group in task.optimizer.param_groups:
        group["lr"] = rate or group["lr"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with Shadow(task.model, {name: way for name, (way, _) in plants.items()}) as shadow:
            for step in range(150):
                shadow(task.loss, task.batch(step)).backward()
                task.optimizer.step()
                task.optimizer.zero_grad()
    finally:
        torch.set_num_threads(threads)
    return {name: (shadow.judge(name), wanted) for name, (_, wanted) in plants.items()}


@pytest.mark.slow
def test_planted_candidates_are_told_apart():
    """One seed; `benchmarks/planted.py` takes ten."""
    for name, (found, wanted) in judged(0).items():
        if wanted == "not biased":
            assert found.verdict != "biased", f"{name}: {found}"
        else:
            assert found.verdict == wanted, f"{name}: {found}"


@pytest.mark.slow
def test_rounded_weights_that_hardly_move_are_persistent_and_not_biased():
    """Their rounding has a gain in nearly every tensor, which redrawn weights do not have."""
    found = judged(0, 1e-5, only="weights")
    rounded, _ = found["weights nearest"]
    assert rounded.verdict == "persistent"
    assert max(abs(t.gain.z) for t in rounded.tensors) > 6
    assert max(abs(t.redrawn.z) for t in rounded.tensors) < 4
    assert found["weights truncated"][0].verdict == "biased"
