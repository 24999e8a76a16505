"""What a candidate costs or saves: time of a step, forward and backward apart, and memory.

Baseline and candidate take their steps in turn in one process, so that what slows the machine down
slows both. Attention's share is that of its calls alone, at the same inputs.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from roundoff.intercept.attention import AttentionFunction, attention_function
from roundoff.intercept.capture import AttentionCall, captured
from roundoff.metrics.intervals import log_t_interval
from roundoff.training.arms import Arm
from roundoff.training.experiment import Experiment
from roundoff.training.runner import Runner
from roundoff.training.variants import AS_IT_IS, attended

__all__ = ["Times", "native", "time_steps"]

BACKENDS = {
    "torch-math": SDPBackend.MATH,
    "torch-cpu-flash": SDPBackend.FLASH_ATTENTION,
    "torch-cuda-flash": SDPBackend.FLASH_ATTENTION,
    "torch-cuda-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "torch-cuda-cudnn": SDPBackend.CUDNN_ATTENTION,
}
WARM_UP = 3
GROUPS = 8
"""Steps are averaged in so many groups, which an interval takes for independent."""


@dataclass(frozen=True)
class Times:
    """Medians of one side, in seconds and bytes.

    `attention` is what the attention calls of a step take alone, forward and backward (None for a
    model's own attention); `kept` the bytes of distinct storages that the forward pass keeps
    for the backward pass.
    """

    forward: float
    backward: float
    update: float
    attention_forward: float | None
    attention_backward: float | None
    kept: int


def time_steps(experiment: Experiment, candidate: str, *, steps: int = 24) -> dict[str, Any]:
    """Time the candidate's steps in turn with the baseline's.

    `ratio` is forward and backward of the candidate over the baseline's, a geometric mean with
    its 95 % interval over groups of neighbouring steps; both sides' `Times` stand beside it.
    """
    names = {"baseline": experiment.baseline, "candidate": candidate}
    with contextlib.ExitStack() as doors:
        sides = {side: _Side(experiment, name, doors) for side, name in names.items()}
        for number in range(WARM_UP + steps):
            for side in list(sides.values())[:: 1 if number % 2 else -1]:
                side.step(number)
        pairs = [
            [f + b for f, b, _ in sides[side].taken[WARM_UP:]] for side in ("candidate", "baseline")
        ]
        size = max(1, steps // GROUPS)
        ratios = [
            sum(pairs[0][i : i + size]) / sum(pairs[1][i : i + size])
            for i in range(0, steps - size + 1, size)
        ]
        interval = log_t_interval(ratios)
        return {
            "candidate_name": candidate,
            "ratio": interval.estimate,
            "low": interval.low,
            "high": interval.high,
            "steps": steps,
            **{side: vars(s.times()) for side, s in sides.items()},
        }


class _Side:
    """One side's training, timed."""

    def __init__(
        self, experiment: Experiment, name: str | None, doors: contextlib.ExitStack
    ) -> None:
        self.calls: list[AttentionCall] = []
        self.attention = None if name is None else native(name)
        variant = AS_IT_IS if self.attention is None else attended(self.attention)
        self.runner = doors.enter_context(
            Runner(experiment, experiment.seed, Arm("timed", "model", variant))
        )
        self.taken: list[tuple[float, float, float]] = []
        self.kept = 0

    def step(self, number: int) -> None:
        """Take a step, and note the seconds of its three parts."""
        runner, task = self.runner, self.runner.task
        batch = task.batch(number)
        task.optimizer.zero_grad()
        begun = now(runner.device)
        with runner.cast(), self._watched() if number == 0 else contextlib.nullcontext():
            loss: Any = task.loss(runner.model, batch)
        forward = now(runner.device)
        loss.backward()
        backward = now(runner.device)
        runner.update()
        self.taken.append((forward - begun, backward - forward, now(runner.device) - backward))

    @contextlib.contextmanager
    def _watched(self) -> Generator[None]:
        """A step, before the clock counts, of which is kept what attention is called with."""
        swapped = self.attention is not None
        with (
            _kept_bytes() as kept,
            (
                captured(self.runner.model) if swapped else contextlib.nullcontext(self.calls)
            ) as self.calls,
        ):
            yield
        self.kept = sum(kept.values())

    def times(self) -> Times:
        """The medians, and attention alone."""
        forward, backward, update = (
            statistics.median(parts) for parts in zip(*self.taken[WARM_UP:], strict=True)
        )
        alone = self._alone()
        return Times(forward, backward, update, *alone, self.kept)

    def _alone(self) -> tuple[float, float] | tuple[None, None]:
        """Medians of all attention calls of a step, by themselves."""
        if self.attention is None or not self.calls:
            return None, None
        with self.runner.cast():
            rounds = [[_call(self.attention, call) for call in self.calls] for _ in range(7)]
        sums = [[sum(parts) for parts in zip(*taken, strict=True)] for taken in rounds]
        forward, backward = (statistics.median(parts) for parts in zip(*sums, strict=True))
        return forward, backward


def _call(attention: AttentionFunction, call: AttentionCall) -> tuple[float, float]:
    device = call.q.device.type
    qkv = [x.detach().requires_grad_() for x in (call.q, call.k, call.v)]
    begun = now(device)
    out: Any = attention(*qkv, mask=call.mask, causal=call.causal, scale=call.scale)
    forward = now(device)
    out.backward(torch.ones_like(out))
    return forward - begun, now(device) - forward


def now(device: str) -> float:
    """Seconds of a clock, once the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def native(name: str) -> AttentionFunction:
    """The attention of a name; torch's own without the second forward pass of `kernel_function`."""
    if name not in BACKENDS:
        return attention_function(name)

    def compute(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float
    ) -> Tensor:
        with sdpa_kernel(BACKENDS[name]):
            return functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=causal, scale=scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )  # fmt: skip

    return AttentionFunction(name, compute)


@contextlib.contextmanager
def _kept_bytes() -> Generator[dict[int, int]]:
    """The sizes of the storages that the block keeps for a backward pass, by address."""
    sizes: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        yield sizes
