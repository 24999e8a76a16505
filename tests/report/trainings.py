"""Small runs of training to report on, made through the store, with every kind of trouble."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from roundoff.store import Run

from .runs import HOSTILE, cell, line, sweep, write_run

Record = dict[str, Any]

STEPS = (1, 2, 5, 10, 20)
TENSORS = ("model.embed.weight", "model.layers.0.q.weight", "model.layers.0.q.bias",
           "model.norm.weight")  # fmt: skip
SIZES = {"fast": 2e-5, "bf16": 1e-3, "ulp": 1e-8, "rerun": 0.0, "seed": 0.7}
VERDICTS = ("noise", "persistent", "biased", "cannot tell")


def distance(arm: str, step: int, repeat: int) -> float:
    """How far an arm lies from the baseline, unless a test says otherwise."""
    return SIZES.get(arm, 1e-4) * step * (1 + repeat / 4)


def training(
    repeat: int,
    *,
    candidates: Sequence[str] = ("fast", "bf16"),
    yardsticks: Sequence[str] = ("ulp", "rerun", "seed", "bf16"),
    tensors: Sequence[str] = TENSORS,
    far: Callable[[str, int, int], float] = distance,
    **rest: Any,
) -> Record:
    """The line of one repeat, with losses that fall and distances that `far` gives."""
    arms = list(dict.fromkeys([*candidates, *yardsticks]))
    experiment = {
        "workload": "text", "baseline": None, "candidates": list(candidates),
        "yardsticks": list(yardsticks), "format": "fp32", "steps": STEPS[-1], "repeats": 3,
        "seed": 0, "sampled": 10, "threads": 1,
    } | rest.pop("experiment", {})  # fmt: skip
    return {
        "schema": 1, "status": "ok", "environment": "e0", "elapsed": 1.0, "parameters": 1234,
        "training": {**experiment, "repeat": repeat},
        "log": {arm: _log(arm, repeat, far, experiment["steps"]) for arm in (*arms, "baseline")},
        "distances": {arm: [_distances(far(arm, s, repeat), s) for s in STEPS] for arm in arms},
        "tensors": {
            arm: [{"step": s, "of": {t: _sizes(far(arm, s, repeat) * (1 + i))
                                     for i, t in enumerate(tensors)}} for s in STEPS]
            for arm in arms
        },
        "direct": {
            c: {"gradient": _judged(tensors, i), "update": None} for i, c in enumerate(candidates)
        },
        "sample": {"text": f"once upon {repeat}"}, **rest,
    }  # fmt: skip


def _log(arm: str, repeat: int, far: Callable[[str, int, int], float], steps: int) -> list[Record]:
    apart = 0.0 if arm == "baseline" else 1.0
    return [
        {"step": s, "loss": 5 / s + apart * far(arm, s, repeat), "grad_norm": 1 / s}
        for s in range(1, steps + 1)
    ]


def _sizes(size: float) -> Record:
    return {"rel_l2": size, "max_diff": size / 2, "w1": size / 3}


def _distances(size: float, step: int) -> Record:
    more = {"rel_l1": size, "cosine": 1 - size**2 / 2, "ulp_mean": size * 1e7, "sign_flips": 3}
    return {"step": step, **_sizes(size), **more}


def _judged(tensors: Sequence[str], at: int) -> Record:
    found = [_error(t, VERDICTS[(at + i) % 4]) for i, t in enumerate(tensors)]
    return {"verdict": "biased", "all": _error("all", "noise"), "tensors": found, "samples": 30,
            "blocks": 30, "redrawn": 5, "given_up": 0, "alpha": 1e-3}  # fmt: skip


def _error(name: str, verdict: str) -> Record:
    gain = {"value": 2e-3, "se": 1e-3, "clusters": 30}
    return {
        "name": name, "verdict": verdict, "why": f"because {verdict}", "size": 0.01,
        "persistence": 1.25, "persistence_tail": 1.0, "gain": gain, "gain_tail": 1.0,
        "redrawn": {**gain, "value": 3e-3}, "detectable": math.inf, "nonfinite": 0,
    }  # fmt: skip


def repeats(count: int = 3, **rest: Any) -> list[Record]:
    """The lines of some repeats."""
    return [training(repeat, **rest) for repeat in range(count)]


def trained(folder: Path) -> Run:
    """Three repeats with pictures, one failed, and more steps than a curve has points."""
    images = [[[255 * (x == y) for x in range(4)] for y in range(3)], [[128]]]
    drawn = {"images": images, "captions": ["A DIAGONAL", "A DOT"]}
    found = repeats(sample=drawn, experiment={"workload": "pictures", "steps": 400})
    bad = {**found[0], "status": "failed", "error": "LabError: it broke"}
    return write_run(folder, [*found, bad], manifest={"command": "roundoff train"})


def diverged(folder: Path) -> Run:
    """An arm that becomes infinite and then NaN, and one that is NaN in one repeat."""

    def far(arm: str, step: int, repeat: int) -> float:
        if arm == "fast" and step >= 10:
            return math.inf if step < 20 else math.nan
        return math.nan if arm == "ulp" and repeat == 1 else distance(arm, step, repeat)

    return write_run(folder, repeats(far=far), manifest={"command": "roundoff train"})


def idle(folder: Path) -> Run:
    """Every arm is the baseline, bit for bit."""
    return write_run(folder, repeats(2, far=lambda *_: 0.0))


def long_run(folder: Path) -> Run:
    """A baseline alone, without arms."""
    return write_run(folder, repeats(1, candidates=(), yardsticks=()))


def both(folder: Path) -> Run:
    """Bench cells, two experiments and a failed cell of each kind in one run."""
    bad = line(cell("kernel:fast", 0, {"seq_len": 64}), status="failed", error="CellError: no")
    rows: Iterable[Record] = [
        *sweep(seeds=2), bad, *repeats(2), *repeats(1, experiment={"format": "bf16"}),
        {**training(9), "status": "skipped", "error": "needs a GPU"},
    ]  # fmt: skip
    return write_run(folder, rows, manifest={"study": "small"})


def hostile_training(folder: Path) -> Run:
    """Every string is an attack, and the sample is no picture."""
    bad = f"{HOSTILE}2"
    return write_run(folder, repeats(
        2, candidates=(HOSTILE,), yardsticks=(bad,), tensors=(HOSTILE, f"{HOSTILE}.{bad}"),
        far=lambda arm, step, repeat: step * (1e-4 if arm == HOSTILE else 1e-5) * (1 + repeat),
        experiment={"workload": HOSTILE, "baseline": HOSTILE, "format": HOSTILE},
        sample={"images": [[["x"]]], "captions": [HOSTILE]},
    ))  # fmt: skip


TRAININGS = {
    make.__name__: make for make in (trained, diverged, idle, long_run, both, hostile_training)
}
