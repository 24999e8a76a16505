"""What the low-precision-failure study measures: narrow states, remedies, real kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from roundoff.bench.plan import Plan, Sweep
from roundoff.studies.low_precision_failure.captured import capture_inputs

__all__ = [
    "CONTROLS",
    "FINE",
    "GRADIENTS",
    "KERNELS",
    "NARROW",
    "REAL",
    "REMEDIES",
    "TIED",
    "TILES",
    "full",
    "inputs",
    "quick",
    "trained",
]

TIED = "tied-one-signed"
CONTROLS = {"tied-peak": "ties, V of both signs", "tied-one-signed:1": "no ties, V of one sign"}
TILES = (16, 64, 256)
NARROW = {
    "recipe:failure-bf16": "l and O in bf16",
    "recipe:fa2-bf16-output": "O alone in bf16",
    "recipe:paper-bf16": "everything in bf16",
}
REMEDIES = (
    "fa2-bf16-sum", "failure-bf16-tie-safe", "paper-bf16-tie-safe",
    "failure-bf16-offset", "failure-bf16-offset-half", "tie-safe-fp64",
)  # fmt: skip
GRADIENTS = ("failure-bf16", "failure-bf16-delta-weights", "fa2")
REAL = ("fa2", "fa3", "fa2-lazy", "jax-xla")
KERNELS = ("torch-cpu-flash", "torch-math-reduced")
REMEDIED = ("failure-bf16-tie-safe", "paper-bf16-tie-safe", "fa2-bf16-sum", "fa2")
"""Remedies on the inputs of a trained model; one of them is half of one."""
FINE = 16
"""Keys a tile, so that the short sequences of the trained model have several."""
CAPTURED = {"quick": {"steps": 400, "batches": 6}, "full": {"steps": 1200, "batches": 10}}


def quick() -> Plan:
    """One length, sampled rows, 6 seeds: about a minute on two cores, with the captured inputs."""
    return _plan(lengths=("1024",), seeds=6, rows="128", heads="2")


def full() -> Plan:
    """Lengths to 8192 and 10 seeds."""
    return _plan(lengths=("512:8192:x2",), seeds=10, rows="256", heads="4")


def _plan(*, lengths: tuple[str, ...], seeds: int, rows: str, heads: str) -> Plan:
    shape = {"heads": (heads,), "head_dim": ("64",), "rows": (rows,), "seq_len": lengths}
    narrow = tuple(name.partition(":")[2] for name in NARROW)

    def sweep(axes: dict[str, tuple[str, ...]], **rest: object) -> Sweep:
        given = {"baseline": "torch-math", "axes": shape | axes, "seeds": seeds} | rest
        return Sweep.model_validate(given)

    every = {"inputs": (TIED, *CONTROLS)}
    return Plan(sweep=(
        # The bias and its controls; what takes it away; where kernels have it.
        sweep(every, recipes=(*narrow, *REMEDIES, *REAL), kernels=KERNELS),
        # One tile for all keys up to the longest length, and smaller ones.
        sweep({"inputs": (TIED,), "tile": (*map(str, TILES), "8192")}, recipes=narrow),
        # Gradients, for D from O and from P.
        sweep({"inputs": (TIED,), "gradients": ("yes",)}, recipes=GRADIENTS),
    ))  # fmt: skip


def inputs(preset: str, folder: Path, tell: Callable[[int, int], None]) -> list[Path]:
    """The files of a trained model's q, k and v, in the folder of the run."""
    return capture_inputs(folder / "inputs", tell=tell, **CAPTURED[preset])


def trained(paths: list[Path]) -> Plan:
    """Narrow states, remedies and kernels on those files, in tiles of their own and small ones."""
    shape = {"batch": "16", "heads": "4", "kv_heads": "2", "seq_len": "64", "head_dim": "16"}
    axes = shape | {"inputs": tuple(f"file:{path}" for path in paths), "mask": "causal"}
    recipes = (*(name.partition(":")[2] for name in NARROW), *REMEDIED)
    given = {"baseline": "torch-math", "seeds": 1, "recipes": recipes}
    return Plan(sweep=(
        Sweep.model_validate(given | {"axes": axes, "kernels": KERNELS}),
        Sweep.model_validate(given | {"axes": axes | {"tile": str(FINE)}}),
    ))  # fmt: skip
