"""What watching costs: `roundoff.Monitor` at its default settings, shadow golden included.

    python benchmarks/monitor.py [--workloads text,text-to-image] [--blocks 16]

Two equal trainings take turns, step by step, in alternating order; one is watched. A block is as
many steps as lie between two sampled ones, so that each holds one. The figure is the ratio of the
total times, with a 95 % t interval over the blocks' log ratios; beside it stands what one sampled
step costs more than its twin. Losses are compared bit by bit. The first steps are not counted:
Numba loads its loops then. The table stands in `docs/monitor.md` too; a workload that is not
measured keeps its row.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from measuring import machine, timed
from record import put

from roundoff import Monitor
from roundoff.live.watch import EVERY
from roundoff.metrics.intervals import log_t_interval
from roundoff.workloads import Task, load_workload

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results", HERE.parent / "docs" / "monitor.md"
WARM_UP = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", default="text,text-to-image")
    parser.add_argument("--blocks", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = RESULTS / "monitor.json"
    found = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
    for name in options.workloads.split(","):
        here = machine(("torch", "numba", "transformers", "diffusers"))
        found[name] = {**measured(name, options.blocks), "machine": here}
    kept.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    (RESULTS / "monitor.md").write_text(table(found), "utf-8")
    put(PAGE, "monitor", table(found))
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
    over = log_t_interval(b / a for a, b in sums)
    ratio = sum(b for _, b in sums) / sum(a for a, _ in sums)
    return {
        "steps": len(cut), "every": EVERY, "ratio": ratio,
        "low": over.low, "high": over.high, "blocks": sums,
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
