"""The workloads as docs/workloads.md shows them: size, time of a step, losses, letters drawn.

    python benchmarks/workloads.py [times | letters]

`times` (about a minute) trains each workload for 200 steps on one thread: the processor's time for
a step, and the loss before and after. `letters` (minutes) trains `text-to-image` for 3000 steps and
draws docs/images/glyphs.png: rows of the fonts' letters, each above the model's. Without a word:
both.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measuring import machine
from PIL import Image
from record import ROOT, write
from torch import Tensor
from torch.nn import functional

from roundoff.workloads import WORKLOADS, Task, load_workload
from roundoff.workloads.glyphs import captioned

STEPS, LETTER_STEPS = 200, 3000
ENLARGED, GAP = 4, 1
PICTURE = ROOT / "docs/images/glyphs.png"


def step(task: Task, number: int) -> float:
    """Take a step: its loss."""
    task.optimizer.zero_grad()
    loss = task.loss(task.model, task.batch(number))
    loss.backward()
    task.optimizer.step()
    if task.scheduler is not None:
        task.scheduler.step()
    return loss.item()


def times(name: str) -> dict[str, Any]:
    task = load_workload(name).build(0, 0)
    losses: list[float] = []
    seconds: list[float] = []
    for number in range(STEPS):
        begun = time.process_time()
        losses.append(step(task, number))
        seconds.append(time.process_time() - begun)
    return {
        "parameters": sum(p.numel() for p in task.model.parameters()),
        "seconds": round(statistics.median(seconds), 4),
        "quartiles": [round(q, 4) for q in statistics.quantiles(seconds, n=4)[::2]],
        "loss": losses[0], f"loss after {STEPS} steps": statistics.mean(losses[-10:]),
    }  # fmt: skip


def table(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        f"| workload | parameters | CPU time of a step | loss at first | after {STEPS} steps |",
        "|---" * 5 + "|",
    ]
    lines += [
        f"| `{name}` | {f['parameters']:,} | {f['seconds']:.3f} s | {f['loss']:.2f} "
        f"| {f[f'loss after {STEPS} steps']:.2f} |"
        for name, f in found.items()
    ]
    return "\n".join(lines) + "\n"


def letters(path: Path) -> None:
    task = load_workload("text-to-image").build(0, 0)
    for number in range(LETTER_STEPS):
        step(task, number)
        if number % 500 == 499:
            print(number + 1, flush=True)
    assert task.sample is not None
    made = task.sample(task.model)
    fonts = dict(zip(captioned()[1], captioned()[0], strict=True))
    asked = torch.stack([fonts[caption] for caption in made.captions])
    columns = len(made.captions) // 2
    rows = [part for pair in zip(asked.split(columns), made.images.split(columns), strict=True)
            for part in pair]  # fmt: skip
    drawn(rows).save(path, optimize=True)


def drawn(rows: list[Tensor]) -> Image.Image:
    """Rows of images [n, height, width] in [0, 1], white on black, each point enlarged."""
    framed = [functional.pad(row, (GAP, GAP, GAP, GAP)) for row in rows]
    grey = (torch.cat([torch.cat([*row], 1) for row in framed]) * 255).round().byte()
    grey = grey.repeat_interleave(ENLARGED, 0).repeat_interleave(ENLARGED, 1)
    return Image.fromarray(grey.numpy())


def main(what: str = "") -> None:
    torch.set_num_threads(1)
    if what in ("", "times"):
        found = {name: times(name) for name in WORKLOADS}
        kept = {
            "command": "python benchmarks/workloads.py",
            "machine": machine(("torch", "transformers", "diffusers", "matplotlib")),
            "workloads": found,
        }
        write("workloads", kept, table(found))
    if what in ("", "letters"):
        letters(PICTURE)


if __name__ == "__main__":
    main(*sys.argv[1:])
