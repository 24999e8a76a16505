"""What watching costs: `roundoff.Monitor` at its default settings, shadow golden included.

    python benchmarks/monitor.py [--workloads text,text-to-image] [--blocks 8]

Two equal trainings take turns, step by step, in alternating order; one is watched. A block is as
many steps as lie between two sampled ones, so that each holds one. The figure is the ratio of the
total times, with a 95 % bootstrap interval over blocks; beside it stands what one sampled step
costs more than its twin. Losses are compared bit by bit. The first steps are not counted:
Numba loads its loops then.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from pathlib import Path
from typing import Any

import torch
from measuring import machine, timed

from roundoff import Monitor
from roundoff.live.watch import EVERY
from roundoff.workloads import Task, load_workload

RESULTS = Path(__file__).resolve().parent / "results"
WARM_UP = 10
DRAWS = 4000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", default="text,text-to-image")
    parser.add_argument("--blocks", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: measured(name, options.blocks) for name in options.workloads.split(",")}
    document = {"machine": machine(("torch", "numba", "transformers", "diffusers")), **found}
    (RESULTS / "monitor.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    (RESULTS / "monitor.md").write_text(table(found), "utf-8")
    print(table(found), end="")


def measured(workload: str, blocks: int) -> dict[str, Any]:
    bare, watched = (load_workload(workload).build(0, 0) for _ in range(2))
    with Monitor(watched.model, watched.optimizer) as monitor:
        pairs = [pair(bare, watched, step) for step in range(WARM_UP + blocks * EVERY)]
    cut = pairs[WARM_UP:]
    every = [cut[i : i + EVERY] for i in range(0, len(cut), EVERY)]
    sums = [(sum(a for a, _ in block), sum(b for _, b in block)) for block in every]
    firing = [pairs[i][1] - pairs[i][0] for i in range(EVERY, len(pairs), EVERY)]
    step = statistics.median(a for a, _ in cut)
    low, high = interval(sums)
    return {
        "steps": len(cut), "every": EVERY, "ratio": ratio(sums), "low": low, "high": high,
        "step_ms": 1e3 * step, "firing_ms": 1e3 * statistics.median(firing),
        "firing_in_steps": statistics.median(firing) / step, "readings": len(monitor.readings),
        "findings": [str(finding) for finding in monitor.findings],
    }  # fmt: skip


def pair(bare: Task, watched: Task, step: int) -> tuple[float, float]:
    """Seconds of one step of both; which goes first alternates."""
    losses: dict[int, float] = {}

    def stepped(task: Task) -> None:
        loss = task.loss(task.model, task.batch(step))
        loss.backward()
        task.optimizer.step()
        task.optimizer.zero_grad()
        if task.scheduler is not None:
            task.scheduler.step()
        losses[id(task)] = loss.item()

    seconds: dict[int, float] = {}
    for task in (bare, watched) if step % 2 else (watched, bare):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(step)
            seconds[id(task)] = timed(lambda t=task: stepped(t))
    assert losses[id(bare)] == losses[id(watched)], f"step {step}: the monitor disturbed it"
    return seconds[id(bare)], seconds[id(watched)]


def ratio(sums: list[tuple[float, float]]) -> float:
    return sum(b for _, b in sums) / sum(a for a, _ in sums)


def interval(sums: list[tuple[float, float]]) -> tuple[float, float]:
    """95 % of the ratios of blocks drawn again."""
    dice = random.Random(0)
    drawn = sorted(ratio(dice.choices(sums, k=len(sums))) for _ in range(DRAWS))
    return drawn[DRAWS // 40], drawn[-DRAWS // 40]


def table(found: dict[str, Any]) -> str:
    lines = [
        "| workload | steps | total time with / without | one step | one firing |",
        "|---|---|---|---|---|",
    ]
    for name, row in found.items():
        lines.append(
            f"| {name} | {row['steps']}, every {row['every']}th sampled "
            f"| {row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}] | {row['step_ms']:.0f} ms "
            f"| {row['firing_ms']:.0f} ms, {row['firing_in_steps']:.1f} steps |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
