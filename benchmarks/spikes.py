"""Precision and recall of rules that find spikes, on series of which it is known where they are.

    python benchmarks/spikes.py [--seeds 20]

The series are those of `tests/live/labelled.py`: spikes of many shapes, drifts, warm-ups, honest
noise, restarts. Beside roundoff's rules stand Lightning's own `SpikeDetection`, as its library has
it, and ZClip's z. Recall is the share of spikes of which one step is told; precision the share of
tellings that are within one. `docs/spikes.md` has the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from measuring import machine
from record import put

from roundoff.live.rules import DEFAULT_RULES, RULES, NonFinite, find

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "live"))

from labelled import SOUND, SPIKED, Labelled, labelled, score  # noqa: E402

RESULTS, PAGE = HERE / "results", HERE.parent / "docs" / "spikes.md"
Way = Callable[[Labelled], Iterable[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    every = [*labelled(range(options.seeds))]
    found = {name: judged(way, every) for name, way in ways().items()}
    document = {"machine": machine(("torch", "lightning")), "seeds": options.seeds, "rules": found}
    (RESULTS / "spikes.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    text = table(found)
    (RESULTS / "spikes.md").write_text(text, "utf-8")
    put(PAGE, "spikes", text)
    print(text, end="")


def ways() -> dict[str, Way]:
    """Each rule as users have it; all of roundoff's with `nonfinite`, which Lightning's has too."""
    named: dict[str, Way] = {"default (nonfinite, median)": told_by(*DEFAULT_RULES)}
    for name in ("mean", "max", "zclip"):
        named[f"nonfinite, {name}"] = told_by(NonFinite(), RULES[name]())
    return {**named, "Lightning's SpikeDetection": by_lightning}


def told_by(*rules: Any) -> Way:
    return lambda one: [spike.told for spike in find(one.kind, one.points, *rules)]


def by_lightning(one: Labelled) -> list[int]:
    """Its defaults; as a callback it would end the training at the first."""
    from lightning.fabric.utilities.spike import SpikeDetection  # noqa: PLC0415

    rule, told = SpikeDetection(), []
    for at, (step, value) in enumerate(one.points):
        loss = torch.tensor(value)
        if at >= rule.warmup and rule._is_spike(loss):
            told.append(step)
        else:
            rule._update_stats(loss)
    return told


def judged(way: Way, every: list[Labelled]) -> dict[str, Any]:
    kinds: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for one in every:
        for at, count in enumerate(score([*way(one)], one)):
            kinds[one.kind][at] += count
    hit, spikes, false = (sum(counts[i] for counts in kinds.values()) for i in range(3))
    told = hit + false
    return {
        "precision": hit / told if told else None, "recall": hit / spikes, "false": false,
        "kinds": {name: dict(zip(("hit", "spikes", "false"), c, strict=True))
                  for name, c in kinds.items()},
    }  # fmt: skip


def table(found: dict[str, dict[str, Any]]) -> str:
    shares = [f"{make.__name__.replace('_', ' ')}" for make in SPIKED]
    lines = [
        f"| rule | precision | recall | {' | '.join(shares)} | false alarms in sound series |",
        "|---" * (len(shares) + 4) + "|",
    ]
    for name, row in found.items():
        kinds = row["kinds"]
        recalls = [f"{kinds[m.__name__]['hit'] / kinds[m.__name__]['spikes']:.0%}" for m in SPIKED]
        sound = sum(kinds[make.__name__]["false"] for make in SOUND)
        precision = "-" if row["precision"] is None else f"{row['precision']:.1%}"
        lines.append(
            f"| {name} | {precision} | {row['recall']:.1%} | {' | '.join(recalls)} | {sound} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
