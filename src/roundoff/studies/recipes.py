"""The recipes study: how much of a real kernel's output its recipe explains, bit for bit.

A share of identical bits means little alone: golden rounded once (the null) matches some
kernels almost everywhere, and another order of the same sums (the floor) costs a little.
So each claim is told with the null, the lift over it, and that floor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from roundoff.bench.plan import Plan, Sweep
from roundoff.operators.attention.catalogue import RECIPES
from roundoff.operators.attention.evidence import percent
from roundoff.studies.rows import complete
from roundoff.studies.study import Answer, Claim, Frame, Study, frame

__all__ = ["STUDY", "evidence", "evidence_plan"]

ODD = ("1", "7", "33", "100", "257", "513", "1000", "1025", "2048", "4096")
SHORT = ("1", "33", "257", "512", "1025")
MASKED = ("33", "257", "1025")
GRADIENTS = ("33", "191", "192", "257", "768", "1025")
"""Of gradients: torch's CPU flash changes its tile at 192 and 768."""
LONG = ("8192",)
FORMATS = ("bf16", "fp16")
SLACK = 2
FOLLOWED = ("torch-math", "torch-math-reduced", "torch-cpu-flash")


def _plan(lengths: tuple[str, ...]) -> Plan:
    plain = {
        "seq_len": lengths,
        "mask": ("none", "causal"),
        "inputs": ("normal", "normal:2", "normal:4"),
    }
    masked = {"seq_len": MASKED, "mask": ("boolean", "additive", "window:100")}
    return _held(FOLLOWED, (plain, masked))


def _held(names: Iterable[str], sweeps: Iterable[Mapping[str, tuple[str, ...]]]) -> Plan:
    """Each recipe beside its kernel, and beside itself with its sums in another order."""
    return Plan(sweep=tuple(
        Sweep.model_validate({
            "baseline": baseline, "recipes": (recipe,), "axes": axes, "seeds": 1,
            "formats": FORMATS,
        })
        for name in names
        for baseline, recipe in (
            (f"kernel:{name}", name), (f"recipe:{name}", f"{name}~reordered"),
        )
        for axes in sweeps
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
    sweeps = (plain,) if compiled else (plain, masked)
    if RECIPES[name].backward is not None:
        differentiated = {"gradients": ("yes",), "heads": ("4",), "mask": ("none", "causal")}
        sweeps += (
            differentiated | {"seq_len": GRADIENTS, "inputs": ("normal", "normal:4")},
            differentiated | {"seq_len": MASKED, "kv_heads": ("2",), "head_dim": ("32", "128")},
        )
        if name != "triton-tutorial":  # interpreted, so that long ones take many minutes
            sweeps += (differentiated | {"seq_len": LONG, "heads": ("1",), "rows": ("64",)},)
    return _held((name,), sweeps)


def evidence(rows: Frame, name: str, output: str = "out") -> Frame:
    """Pooled and worst match of recipe `name` with its kernel in one output, one line a format.

    Empty where no cell has that output.
    """
    if _column(output, "match") not in rows:
        return frame([])
    rows = rows[rows[f"{output}_n"].notna()]
    follows = (rows["candidate"] == f"recipe:{name}") & (rows["baseline"] == f"kernel:{name}")
    reorders = rows["candidate"] == f"recipe:{name}~reordered"
    lines: list[Mapping[str, object]] = []
    match_of = _column(output, "match")
    for format, part in complete(rows[follows], match_of).groupby("format"):
        reordered = rows[reorders & (rows["format"] == format)]
        match, null = _pooled(part, output, "match"), _pooled(part, output, "null")
        told = part[part[_column(output, "r2")].notna()]
        lines.append(
            {"recipe": name, "format": format, "match": match, "worst": part[match_of].min(),
             "null": null, "lift": (match - null) / (1 - null) if null < 1 else math.nan,
             "r2": _pooled(told, output, "r2"), "order floor": _pooled(reordered, output, "match"),
             "worst floor": reordered[match_of].min(), "cells": len(part)}
        )  # fmt: skip
    return frame(lines)


def _column(output: str, name: str) -> str:
    return f"evidence_{output}_{name}"


def _pooled(rows: Frame, output: str, name: str) -> float:
    """The share over all elements, so that long cells count for what they are."""
    weights = rows[f"{output}_n"]
    return float((rows[_column(output, name)] * weights).sum() / weights.sum())


def _follows(name: str, *, exactly: bool = False) -> Claim:
    """The claim that a recipe gives its kernel's bits: all of them, or as many as may be asked.

    The order of sums inside a library's products is no part of a recipe and differs between
    processors. So a recipe may miss as much as it misses of itself when its own sums are reordered,
    twice over, measured on the same cells.
    """

    def judge(rows: Frame) -> Answer:
        table = evidence(rows, name)
        found = table.to_dict("records")
        words = "; ".join(
            f"{r['format']} {percent(r['match'])} (worst cell {percent(r['worst'])}, "
            f"null {percent(r['null'])}, lift {percent(r['lift'])}, "
            f"order floor {percent(r['order floor'])})"
            for r in found
        )
        good = {r["format"] for r in found} == set(FORMATS) and all(map(near, found))
        return Answer("holds" if good else "does not hold", words, evidence=table)

    def near(line: Mapping[str, float]) -> bool:
        if exactly:
            return line["worst"] == 1.0
        return all(
            1.0 - line[share] <= SLACK * (1.0 - line[floor])
            for share, floor in (("match", "order floor"), ("worst", "worst floor"))
        )

    claimed = (
        "every bit" if exactly
        else f"misses at most {SLACK} times what it misses of itself in another order of sums"
    )  # fmt: skip
    return Claim(name, f"the recipe {name} gives the kernel's bits", claimed, judge)


STUDY = Study(
    name="recipes",
    source="the kernels of this machine",
    doc="Do the recipes that can be run here follow their kernels, bit for bit?",
    presets={"quick": lambda: _plan(SHORT), "full": lambda: _plan(ODD)},
    claims=(
        _follows("torch-math", exactly=True),
        _follows("torch-math-reduced", exactly=True),
        _follows("torch-cpu-flash"),
    ),
)
