"""Inputs of a trained model: the text model is trained, and what its attention is called with is
kept in files, a held-out batch each.

    q [B,H,N,D]    k, v [B,Hk,N,D]    B 16    H 4    Hk 2    N 64    D 16
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch

from roundoff.errors import UnsupportedError, UsageError
from roundoff.intercept.capture import AttentionCall, captured
from roundoff.operators.inputs import read_tensors
from roundoff.registry import load
from roundoff.store.disk import replacing
from roundoff.training.arms import Arm
from roundoff.training.experiment import Experiment
from roundoff.training.runner import Runner

__all__ = ["LAYER", "SEED", "capture_inputs"]

WORKLOAD, SEED = "text", 0
LAYER = 1
"""The last of two."""


def capture_inputs(
    folder: Path, *, steps: int, batches: int, tell: Callable[[int, int], None]
) -> list[Path]:
    """Files of q, k and v in float32, one for each of the batches after the last trained one.

    Files that are there and whole are kept; if all are, nothing is trained. They are the same, bit
    for bit, on one processor with the same libraries: training takes one thread.

    Errors: `UnsupportedError` where the workload cannot run, `RunError` where nothing can be
    written.
    """
    paths = [folder / f"{WORKLOAD}-{SEED}-{steps}-{batch}.safetensors" for batch in range(batches)]
    wanted = {path: steps + batch for batch, path in enumerate(paths) if not _whole(path)}
    if wanted:
        with _one_thread(), _runner(steps) as runner:
            for number in range(steps):
                tell(number, steps)
                runner.gradients(number)
                runner.update()
            for path, batch in wanted.items():
                _write(path, _call(runner, batch))
    tell(steps, steps)
    return paths


def _whole(path: Path) -> bool:
    try:
        read_tensors(path, "qkv")
    except UsageError:
        return False
    return True


@contextlib.contextmanager
def _one_thread() -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _runner(steps: int) -> Runner:
    """The workload's training, as it is."""
    experiment = Experiment(WORKLOAD, steps=steps, repeats=1, seed=SEED)
    return Runner(experiment, SEED, Arm("captured", "nothing"))


def _call(runner: Runner, batch: int) -> AttentionCall:
    """What the layer's attention is called with for a batch."""
    task = runner.task
    with torch.no_grad(), captured(runner.model) as calls:
        task.loss(runner.model, task.batch(batch))
    call = calls[LAYER]
    if call.mask is not None or not call.causal or call.scale != call.q.shape[-1] ** -0.5:
        raise UnsupportedError(
            f"attention of {call.place} in the workload {WORKLOAD!r} is not plain and causal, "
            "which the cells over its inputs say that it is"
        )
    return call


def _write(path: Path, call: AttentionCall) -> None:
    save_file: Any = load("safetensors.torch:save_file")
    with replacing(path) as temporary:
        save_file({n: getattr(call, n).contiguous() for n in "qkv"}, temporary)
