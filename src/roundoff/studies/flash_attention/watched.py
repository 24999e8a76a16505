"""The deviation of the real kernels while a model trains, on sampled rows: a claim of ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from roundoff.live.trained import WatchedTraining
from roundoff.studies.study import Answer, Claim, frame

__all__ = ["CLAIMS", "WATCHED"]

KERNELS = ("torch-math", "torch-cpu-flash")
APART = 2.0
"""A recipe predicts an error if the kernel's is within this factor of its own, either way."""

Records = Sequence[Mapping[str, Any]]


def _watched(steps: int, every: int) -> tuple[WatchedTraining, ...]:
    return tuple(WatchedTraining("text-to-image", kernel, steps, every) for kernel in KERNELS)


WATCHED: dict[str, Callable[[], tuple[WatchedTraining, ...]]] = {
    "quick": lambda: _watched(60, 6),
    "full": lambda: _watched(300, 10),
}


def live(records: Records) -> Answer:
    """The rmse of all heads at each sampled step, and its ratio to the recipe's."""
    lines = [line for record in records for line in _curve(record)]
    if {line["kernel"] for line in lines} != {r["watched"]["attention"] for r in records}:
        return Answer("cannot tell", "nothing was sampled")
    outside = [line for line in lines if not 1 / APART < line["ratio"] < APART]
    told = "; ".join(_told(record, lines) for record in records)
    outcome = "does not hold" if outside else "holds"
    return Answer(outcome, told, evidence=frame(lines))


def _curve(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Over layers and heads at each step: the root mean square of the error, the median ratio."""
    steps: dict[int, list[Mapping[str, Any]]] = {}
    for reading in record["live"]:
        steps.setdefault(reading["step"], []).append(reading)
    return [
        {
            "kernel": record["watched"]["attention"], "step": step,
            "rmse": math.sqrt(sum(float(r["rmse"]) ** 2 for r in held) / len(held)),
            "ratio": _median(held, "ratio"),
            "dq_ratio": _median(held, "dq_ratio"),
        }
        for step, held in sorted(steps.items())
    ]  # fmt: skip


def _median(held: Sequence[Mapping[str, Any]], name: str) -> float:
    """Over heads; NaN if one is."""
    values = [float(reading[name]) for reading in held]
    return math.nan if any(map(math.isnan, values)) else median(values)


def _told(record: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> str:
    kernel = record["watched"]["attention"]
    own = [line for line in lines if line["kernel"] == kernel]
    ratios = [line["ratio"] for line in own]
    return (
        f"{kernel}: rmse {own[0]['rmse']:.2g} at step {own[0]['step'] + 1}, {own[-1]['rmse']:.2g} "
        f"at step {own[-1]['step'] + 1}, {min(ratios):.2f} to {max(ratios):.2f} of its recipe's"
    )


CLAIMS = (
    Claim("LIVE", "In training, the kernels' error stays what their recipes predict",
          "ours, not the paper's", live),
)  # fmt: skip
