"""Seconds of a call: baseline and candidate in turn, so that they share what drifts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from roundoff.operators.protocol import Problem
from roundoff.subjects import Subject

__all__ = ["time_pair"]

LEAST, MOST = 5, 200


def time_pair(
    baseline: Subject, candidate: Subject, problem: Problem, *, budget: float = 1.0
) -> dict[str, Any]:
    """Median seconds of each, the median of their ratios, and the number of repeats.

    Converting the inputs is not timed. Each is called once before, and then at least five
    times, until `budget` seconds are over.
    """
    pair = (baseline, candidate)
    calls = [_ready(subject, problem) for subject in pair]
    taken: list[list[float]] = [[], []]
    deadline = time.perf_counter() + budget
    while len(taken[0]) < LEAST or (time.perf_counter() < deadline and len(taken[0]) < MOST):
        for subject, call, seconds in zip(pair, calls, taken, strict=True):
            with subject.settings():
                seconds.append(_seconds(call, problem))
    ratios = [b / a for a, b in zip(*taken, strict=True)]
    return {
        "baseline_s": statistics.median(taken[0]),
        "candidate_s": statistics.median(taken[1]),
        "ratio": statistics.median(ratios),
        "repeats": len(ratios),
    }


def _ready(subject: Subject, problem: Problem) -> Callable[[], object]:
    with subject.settings():
        call = subject.bind(problem)
        call()
    return call


def _seconds(call: Callable[[], object], problem: Problem) -> float:
    on_gpu = next(iter(problem.inputs.values())).device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - started
