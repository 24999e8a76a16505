"""Whether the shadow tells noise from bias: candidates of which it is known, on the workload text.

    python benchmarks/planted.py [--seeds 10] [--steps 150] [--rates 3e-3,1e-5] [--shard I/N]

Every seed and learning rate is one run, with all plants beside it. `results/planted.json`
holds what came of each and `planted.md` the table; both are written anew after each run, so that a
run that was stopped is completed by the same command. The cost of a sampled step is the
ratio to the unsampled step beside it, which takes turns with it.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from roundoff.metrics.noise_or_bias import ALPHA, Judgement
from roundoff.training.shadow import Shadow
from roundoff.workloads import Task, load_workload

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "training"))

from plants import planted  # noqa: E402

RESULTS = HERE / "results"


def main() -> None:
    options = parsed()
    index, _, count = options.shard.partition("/")
    runs = [(seed, rate) for rate in options.rates.split(",") for seed in range(options.seeds)]
    for seed, rate in runs[int(index) :: int(count)]:
        kept = read()
        if not any((r["seed"], r["rate"], r["steps"]) == (seed, rate, options.steps) for r in kept):
            found = run(seed, float(rate), options.steps)
            write([*read(), found | {"seed": seed, "rate": rate, "steps": options.steps}])
    if index == "0":
        write(read(), overhead=overhead())


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rates", default="3e-3,1e-5")
    parser.add_argument("--shard", default="0/1")
    return parser.parse_args()


def task(seed: int, rate: float) -> Task:
    """The workload text; its rate of learning is 3e-3, and the first steps' is less."""
    built = load_workload("text").build(seed, seed)
    for group in built.optimizer.param_groups:
        group["lr"] = rate * group["lr"] / 3e-3 if built.scheduler else rate
    return built


def run(seed: int, rate: float, steps: int) -> dict[str, Any]:
    begin, built, plants = time.perf_counter(), task(seed, rate), planted(seed)
    with Shadow(built.model, {n: v for n, (v, _) in plants.items()}) as shadow:
        for step in range(steps):
            trained(built, shadow, step)
    found = {n: outcome(shadow.judge(n), wanted) for n, (_, wanted) in plants.items()}
    for name, o in found.items():
        print(seed, rate, name, o["verdict"], "" if o["right"] else f"WRONG {o}", flush=True)
    return {"seconds": round(time.perf_counter() - begin), "candidates": found}


def trained(built: Task, shadow: Shadow, step: int) -> None:
    shadow(built.loss, built.batch(step)).backward()
    built.optimizer.step()
    built.optimizer.zero_grad()
    if built.scheduler is not None:
        built.scheduler.step()


def outcome(judged: Judgement, wanted: str) -> dict[str, Any]:
    """The verdict, whether it is right, and how near to another it was."""
    right = judged.verdict != "biased" if wanted == "not biased" else judged.verdict == wanted
    words = [t.verdict for t in judged.tensors]
    rows = (judged.all, *judged.tensors)
    numbers = {
        "size": judged.all.size, "gain": judged.all.gain.value, "detectable": judged.all.detectable,
        "largest t": max(abs(t.gain.z) for t in rows),
        "largest t, redrawn": max(abs(t.redrawn.z) for t in rows),
        "least tail of persistence": min(t.persistence_tail for t in rows),
        "least tail of gain": min(t.gain_tail for t in rows),
    }  # fmt: skip
    return {
        "verdict": judged.verdict, "wanted": wanted, "right": right, "samples": judged.samples,
        "redrawn": judged.redrawn, "tensors": {w: words.count(w) for w in sorted(set(words))},
        **{name: float(f"{value:.3g}") for name, value in numbers.items()},
    }  # fmt: skip


def overhead(pairs: int = 60) -> dict[str, float]:
    """A sampled step over the unsampled step beside it, one candidate; every fifth is redrawn."""
    built, (candidate, _) = task(0, 3e-3), planted(0)["nearest"]
    seconds: list[float] = []
    with Shadow(built.model, {"nearest": candidate}, every=2) as shadow:
        for step in range(2 * pairs + 10):
            begin = time.perf_counter()
            trained(built, shadow, step)
            seconds.append(time.perf_counter() - begin)
    ratios = [a / b for a, b in zip(seconds[10::2], seconds[11::2], strict=True)]
    fifths = [r for i, r in enumerate(ratios) if i % 5 == 4]  # five pairs were left out at first
    plain = [r for i, r in enumerate(ratios) if i % 5 != 4]
    return {
        "plain sample": round(statistics.median(plain), 2),
        "redrawn sample": round(statistics.median(fifths), 2),
        "mean": round(0.8 * statistics.median(plain) + 0.2 * statistics.median(fifths), 2),
    }


def read() -> list[dict[str, Any]]:
    path = RESULTS / "planted.json"
    return json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []


def write(runs: list[dict[str, Any]], **more: Any) -> None:
    kept = {
        "command": "python benchmarks/planted.py",
        "alpha": ALPHA,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s)",
        **more,
        "runs": sorted(runs, key=lambda r: (-float(r["rate"]), r["seed"])),
    }
    text = json.dumps(kept, indent=1, ensure_ascii=False) + "\n"
    (RESULTS / "planted.json").write_text(text, encoding="utf-8")
    (RESULTS / "planted.md").write_text(table(runs), encoding="utf-8")


def table(runs: list[dict[str, Any]]) -> str:
    lines = [
        "| learning rate | planted | wanted | right | verdicts | largest t of a gain | redrawn |",
        "|---|---|---|---|---|---|---|",
    ]
    for rate in sorted({r["rate"] for r in runs}, key=float, reverse=True):
        of_rate = [r["candidates"] for r in runs if r["rate"] == rate]
        for name in of_rate[0]:
            found = [c[name] for c in of_rate]
            verdicts = [o["verdict"] for o in found]
            told = ", ".join(f"{v} {verdicts.count(v)}" for v in sorted(set(verdicts)))
            t = [between([o[k] for o in found]) for k in ("largest t", "largest t, redrawn")]
            right = f"{sum(o['right'] for o in found)} of {len(found)}"
            lines.append(
                f"| {rate} | {name} | {found[0]['wanted']} | {right} | {told} | {t[0]} | {t[1]} |"
            )
    return "\n".join(lines) + "\n"


def between(values: list[float]) -> str:
    return f"{min(values):.1f} to {max(values):.1f}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
