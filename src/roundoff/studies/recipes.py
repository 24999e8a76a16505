"""The recipes study: how much of a real kernel's output its recipe explains, bit for bit.

A share of identical bits means little alone: golden rounded once (the null) matches some
kernels almost everywhere, and another order of the same sums (the floor) costs a little.
So each claim is told with the null, the lift over it, and that floor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from roundoff.bench.plan import Plan, Sweep
from roundoff.studies.rows import complete
from roundoff.studies.study import Claim, Finding, Frame, Study, frame

__all__ = ["STUDY", "evidence", "evidence_plan"]

ODD = ("1", "7", "33", "100", "257", "513", "1000", "1025", "2048", "4096")
SHORT = ("1", "33", "257", "512", "1025")
MASKED = ("33", "257", "1025")
FOLLOWED = ("torch-math", "torch-math-reduced", "torch-cpu-flash")


def _plan(lengths: tuple[str, ...], seeds: int) -> Plan:
    plain = {
        "seq_len": lengths,
        "mask": ("none", "causal"),
        "inputs": ("normal", "normal:2", "normal:4"),
    }
    masked = {"seq_len": MASKED, "mask": ("boolean", "additive", "window:100")}
    return Plan(sweep=tuple(
        Sweep.model_validate({
            "baseline": baseline, "recipes": (recipe,), "axes": axes, "seeds": seeds,
            "formats": ("bf16", "fp16"),
        })
        for name in FOLLOWED
        for baseline, recipe in (
            (f"kernel:{name}", name), (f"recipe:{name}", f"{name}~reordered"),
        )
        for axes in (plain, masked)
    ))  # fmt: skip


def evidence_plan(name: str) -> Plan:
    """What the recipe `name` is held to its kernel on, for the evidence that is kept."""
    compiled = name == "torch-flex"  # some seconds for every shape and mask
    plain = {
        "seq_len": ("33", "257", "1000") if compiled else SHORT,
        "mask": ("none", "causal"),
        "inputs": ("normal", "normal:2", "normal:4"),
        "heads": ("2",),
    }
    masked = plain | {"seq_len": MASKED, "mask": ("boolean", "additive"), "inputs": ("normal",)}
    return Plan(sweep=tuple(
        Sweep.model_validate({
            "baseline": baseline, "recipes": (recipe,), "axes": axes, "seeds": 1,
            "formats": ("bf16", "fp16"),
        })
        for baseline, recipe in (
            (f"kernel:{name}", name), (f"recipe:{name}", f"{name}~reordered"),
        )
        for axes in ((plain,) if compiled else (plain, masked))
    ))  # fmt: skip


def evidence(rows: Frame, name: str) -> Frame:
    """Pooled and worst match of recipe `name` with its kernel, one line a format."""
    follows = (rows["candidate"] == f"recipe:{name}") & (rows["baseline"] == f"kernel:{name}")
    reorders = rows["candidate"] == f"recipe:{name}~reordered"
    lines: list[Mapping[str, object]] = []
    for format, part in complete(rows[follows], _column("match")).groupby("format"):
        floor = _pooled(rows[reorders & (rows["format"] == format)], "match")
        match, null = _pooled(part, "match"), _pooled(part, "null")
        worst = part[_column("match")].min()
        lines.append(
            {"recipe": name, "format": format, "match": match, "worst": worst, "null": null,
             "lift": (match - null) / (1 - null) if null < 1 else math.nan,
             "r2": _correlation(part), "order floor": floor, "cells": len(part)}
        )  # fmt: skip
    return frame(lines)


def _column(name: str) -> str:
    return f"evidence_out_{name}"


def _pooled(rows: Frame, name: str) -> float:
    """The share over all elements, so that long cells count for what they are."""
    weights = rows["out_n"]
    return float((rows[_column(name)] * weights).sum() / weights.sum())


def _correlation(rows: Frame) -> float:
    """The squared correlation of the errors, a mean over elements of cells that have one."""
    return _pooled(rows[rows[_column("r2")].notna()], "r2")


def _follows(name: str, **least: tuple[float, float]) -> Claim:
    """The claim that a recipe gives its kernel's bits: least pooled and worst share by format."""

    def judge(rows: Frame) -> Finding:
        table = evidence(rows, name)
        found = table.to_dict("records")
        words = "; ".join(
            f"{r['format']} {_percent(r['match'])} (worst cell {_percent(r['worst'])}, "
            f"null {_percent(r['null'])}, lift {_percent(r['lift'])}, "
            f"order floor {_percent(r['order floor'])})"
            for r in found
        )
        good = {r["format"] for r in found} == set(least) and all(
            r["match"] >= least[r["format"]][0] and r["worst"] >= least[r["format"]][1]
            for r in found
        )
        return Finding("holds" if good else "does not hold", words, evidence=table)

    claimed = "; ".join(
        f"{format} at least {_percent(pooled)}, worst cell {_percent(worst)}"
        for format, (pooled, worst) in least.items()
    )
    return Claim(name, f"the recipe {name} gives the kernel's bits", claimed, judge)


def _percent(share: float) -> str:
    """Four decimals, cut and not rounded: 100 % means every element."""
    return f"{math.floor(share * 1e6) / 1e4:g} %"


STUDY = Study(
    name="recipes",
    source="the kernels of this machine",
    doc="Do the recipes that can be run here follow their kernels, bit for bit?",
    presets={"quick": lambda: _plan(SHORT, 1), "full": lambda: _plan(ODD, 1)},
    claims=(
        _follows("torch-math", bf16=(1.0, 1.0), fp16=(1.0, 1.0)),
        _follows("torch-math-reduced", bf16=(1.0, 1.0), fp16=(1.0, 1.0)),
        _follows("torch-cpu-flash", bf16=(0.9999, 0.9998), fp16=(0.999, 0.999)),
    ),
)
