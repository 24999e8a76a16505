"""C1-C6 of "Is Flash Attention Stable?" as predicates over rows, and two findings of ours.

Every predicate looks at all recipes and kernels that could make its claim true, since the
paper does not state its rounding, and says what it takes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from roundoff.studies.flash_attention.plan import FORMATS, PAPER_TILE, SWAPPED_TILE
from roundoff.studies.rows import (
    METRICS,
    complete,
    numbers,
    paired_ratio,
    pick,
    ratios,
    seeds_of,
    short,
    slopes,
    spell,
)
from roundoff.studies.study import Answer, Frame, frame

__all__ = ["c1", "c2", "c3", "c4", "c5", "c6", "cause", "law"]

ABOUT_TEN = 5.0
"""What counts as "about 10x": at least half of it."""
NEGLIGIBLE = 0.05
"""Exponents up to this are no trend: doubling the length changes the error by 3.5 %."""
SAME = 1.25
"""Ratios within this factor count as one value."""

BASELINES = {"kernel:torch-math": "fp32 inside", "recipe:baseline-bf16": "all bf16"}
STATES = {
    "recipe:paper-bf16": "everything in bf16",
    "recipe:fa2-bf16-state": "its state (m, l, O) in bf16",
    "recipe:fa2": "its state in fp32",
}
REAL = {
    "kernel:torch-cpu-flash": "torch CPU flash",
    "kernel:torch-flex": "compiled FlexAttention",
    "kernel:torch-cuda-flash": "torch CUDA flash",
    "kernel:torch-cuda-efficient": "mem-efficient",
    "kernel:torch-cuda-cudnn": "cuDNN",
}
PARTS = {
    "recipe:fa2-bf16-maximum": "m alone",
    "recipe:fa2-bf16-sum": "l alone",
    "recipe:fa2-bf16-output": "O alone",
}


def _bf16(rows: Frame) -> Frame:
    """The grid of C1, C3 and C4: bf16 storage, torch-math as baseline, no query tile."""
    chosen = (rows["format"] == "bf16") & (rows["baseline"] == "kernel:torch-math")
    return rows[chosen & rows["q_tile"].isna()]


def c1(rows: Frame) -> Answer:
    """Flash over baseline, by max error on N(0, 1): from how many tiles on is it about 10x?"""
    table = complete(ratios(_bf16(rows), STATES | REAL, BASELINES), "ratio", "low", "high")
    plain = table[(table["metric"] == "max error") & (table["inputs"] == "normal")]
    plain = plain.assign(tiles=plain["seq_len"] / plain["tile"])
    reaching = [
        (state, base, cells)
        for state, base in itertools.product(STATES, BASELINES)
        if len(cells := _from_some_tiles_on(plain, state, base))
    ]
    real = table[table["candidate"].isin(REAL)]
    worst = real.loc[real["ratio"].idxmax()]
    kernels = f"real kernels at most {spell(worst)} ({REAL[worst['candidate']]})"
    if not reaching:
        top = plain.loc[plain["ratio"].idxmax()]
        return Answer("does not hold", f"at most {spell(top)}; {kernels}", evidence=table)
    words: list[str] = []
    for base, name in BASELINES.items():
        found = [cells for _, other, cells in reaching if other == base]
        if found:
            low, high = min(c["ratio"].min() for c in found), max(c["ratio"].max() for c in found)
            start = max(c["tiles"].min() for c in found)
            words.append(f"{_span(low, high)} from n/tile {start:.0f} over {name}")
    states = " or ".join(dict.fromkeys(STATES[state] for state, _, _ in reaching))
    condition = f"flash keeps {states}, with enough tiles"
    return Answer("holds only if", f"{', '.join(words)}; {kernels}", condition, table)


def _span(low: float, high: float) -> str:
    ends = dict.fromkeys(f"{end:.2g}" for end in (low, high))
    return f"{'-'.join(ends)}x"


def _from_some_tiles_on(table: Frame, state: str, base: str) -> Frame:
    """The cells from the smallest n/tile on from which every cell is about 10x or more."""
    cells = table[(table["candidate"] == state) & (table["baseline"] == base)]
    short_of = cells[(cells["ratio"] < ABOUT_TEN) | (cells["low"] <= 1)]
    return cells[cells["tiles"] > short_of["tiles"].max()] if len(short_of) else cells


def c2(rows: Frame) -> Answer:
    """Each wider format must deviate less, in both metrics, for baseline and flash."""
    lines: list[Mapping[str, object]] = []
    kinds = itertools.product(("normal", "outliers"), ("paper", "baseline"), METRICS)
    for inputs, kind, metric in kinds:
        for wide, narrow in itertools.pairwise(reversed(FORMATS)):
            here, there = (_in_format(rows, kind, f, inputs) for f in (narrow, wide))
            lines.append(
                {"inputs": inputs, "recipe": kind, "metric": METRICS[metric],
                 "step": f"{narrow} over {wide}"} | numbers(paired_ratio(here, there, metric))
            )  # fmt: skip
    table = complete(frame(lines), "ratio", "low", "high")
    least = table.loc[table["low"].idxmin()]
    where = f"{least['step']}, {least['recipe']}, {least['metric']}"
    if (table["low"] > 1).all():
        measured = f"every step lowers max error and rmse, the least by {spell(least)} ({where})"
        return Answer("holds", measured, evidence=table)
    return Answer("does not hold", f"{spell(least)} ({where})", evidence=table)


def _in_format(rows: Frame, kind: str, format: str, inputs: str) -> Frame:
    base = f"recipe:baseline-{format}"
    return pick(rows, f"recipe:{kind}-{format}", format=format, inputs=inputs, baseline=base)


def c3(rows: Frame) -> Answer:
    """Error against length at a fixed tile; untiled attention and kernels are the control."""
    grid = _bf16(rows)
    lengths = grid.groupby("candidate")["seq_len"].transform("nunique")
    grid = grid[grid["candidate"].isin([*STATES, *BASELINES, *REAL]) & (lengths > 2)]
    return _trend(slopes(grid, "seq_len", ["candidate", "inputs", "tile"]), sign=1, of="n")


def c4(rows: Frame) -> Answer:
    """Error against the tile at a fixed length, for the recipes whose tile can be chosen."""
    grid = _bf16(rows)
    grid = grid[grid["candidate"].isin(STATES) & grid["tile"].notna()]
    return _trend(slopes(grid, "tile", ["candidate", "inputs", "seq_len"]), sign=-1, of="tile")


def _trend(table: Frame, *, sign: int, of: str) -> Answer:
    """Judge the exponent of the relative error for each candidate, over all inputs.

    A trend counts if its interval lies beyond `NEGLIGIBLE` in every group. Relative, because
    absolute errors shrink with n as outputs do; the maximum on N(0, 1) is told beside it.
    """
    table = complete(table, "slope", "low", "high")
    edge = table["low"] if sign > 0 else -table["high"]
    table = table.assign(holds=edge > NEGLIGIBLE)
    relative = table[table["metric"] == "rel_l2"]
    holds = relative.groupby("candidate", sort=False)["holds"].all()
    middle = relative.groupby("candidate", sort=False)["slope"].median()
    words = ", ".join(f"{of}^{middle[c]:.2f} {short(c)}" for c in holds.index)
    plain = table[(table["metric"] == "max_abs_err") & (table["inputs"] == "normal")]
    largest = plain.groupby("candidate", sort=False)["slope"].median()
    spread = f"{of}^{largest.min():.2f} to {of}^{largest.max():.2f}"
    measured = f"relative error: {words}; max error on N(0, 1): {spread}"
    yes = [c for c in STATES if holds.get(c, False)]
    others = [short(c) for c in holds.index if holds[c] and c not in STATES]
    if len(yes) == len(STATES):
        return Answer("holds", measured, evidence=table)
    if not yes and not others:
        return Answer("does not hold", measured, evidence=table)
    condition = f"flash keeps {' or '.join(STATES[c] for c in yes)}" if yes else ""
    if others:
        condition = "; ".join(filter(None, (condition, f"also {', '.join(others)}")))
    return Answer("holds only if", measured, condition, table)


def _blocks(rows: Frame, keys: int, queries: int) -> Frame:
    return pick(rows, "recipe:paper-bf16", tile=keys, q_tile=queries)


def _same_errors(one: Frame, other: Frame) -> bool:
    pairs = [(seeds_of(one, metric), seeds_of(other, metric)) for metric in METRICS]
    if any(a.isna().any() or b.isna().any() for a, b in pairs):
        raise ValueError("a seed is NaN or was not measured")
    return all((a == b).all() for a, b in pairs)


def c5(rows: Frame) -> Answer:
    """The paper's block against the swapped one; and whether the query tile had a part in it."""
    paper = _blocks(rows, PAPER_TILE, SWAPPED_TILE)
    swapped = _blocks(rows, SWAPPED_TILE, PAPER_TILE)
    found = {name: paired_ratio(swapped, paper, metric) for metric, name in METRICS.items()}
    table = complete(frame([{"metric": n} | numbers(r) for n, r in found.items()]), "ratio")
    measured = ", ".join(f"{name} {spell(ratio)}" for name, ratio in found.items())
    measured += f" (keys a tile {PAPER_TILE} to {SWAPPED_TILE})"
    alone = _same_errors(swapped, _blocks(rows, SWAPPED_TILE, SWAPPED_TILE))
    why = "the smaller key tile does it (C4); the query tile changes nothing" if alone else ""
    if all(r.low > 1 for r in found.values()):
        return Answer("holds", measured, why, table)
    outcome = "does not hold" if all(r.high < 1 for r in found.values()) else "cannot tell"
    return Answer(outcome, measured, why, table)


def c6(rows: Frame) -> Answer:
    """Square against oblong query tiles at one key tile."""
    square, oblong = (_blocks(rows, PAPER_TILE, q) for q in (PAPER_TILE, SWAPPED_TILE))
    if _same_errors(square, oblong):
        condition = "by construction: rows do not meet in the forward pass of this engine"
        return Answer("holds", "the same errors in every seed", condition)
    return Answer("does not hold", "errors differ between square and oblong query tiles")


def law(rows: Frame) -> Answer:
    """All-bf16 flash over all-bf16 attention: one value for one number of tiles?"""
    bases = {"recipe:baseline-bf16": ""}
    table = ratios(_bf16(rows), {"recipe:paper-bf16": ""}, bases)
    table = complete(table[table["metric"] == "rmse"], "ratio")
    table = table.assign(tiles=table["seq_len"] / table["tile"])
    groups = table.groupby(["inputs", "tiles"])["ratio"].agg(["min", "max", "median", "count"])
    shared = groups[groups["count"] > 1]
    spread = float((shared["max"] / shared["min"]).max())
    normal = groups.loc["normal"]["median"]
    words = ", ".join(f"{value:.2g}x at {tiles:.0f}" for tiles, value in normal.items())
    measured = (
        f"rmse by n/tile, N(0, 1): {words}; "
        f"cells of one n/tile differ by at most {100 * (spread - 1):.0f} %"
    )
    return Answer("holds" if spread <= SAME else "does not hold", measured, evidence=table)


def cause(rows: Frame) -> Answer:
    """Only m, only l, only O in bf16, over fa2 with its fp32 state, at equal inputs."""
    table = ratios(_bf16(rows), PARTS, {"kernel:torch-math": ""})
    fa2 = ratios(_bf16(rows), {"recipe:fa2": ""}, {"kernel:torch-math": ""})
    table = complete(table[table["metric"] == "rmse"], "ratio", "low", "high")
    at = ["inputs", "seq_len", "tile", "metric"]
    both = table.merge(fa2[[*at, "ratio"]], on=at, suffixes=("", "_fa2"))
    both = complete(both.assign(over=both["ratio"] / both["ratio_fa2"]), "over")
    cells = both.pivot(index=at, columns="candidate", values="over")
    words = ", ".join(
        f"{name} {_span(cells[part].min(), cells[part].max())}" for part, name in PARTS.items()
    )
    maximum, *others = (cells[part] for part in PARTS)
    good = all((maximum < other).all() for other in others)
    measured = f"rmse over that with an fp32 state: {words}"
    return Answer("holds" if good else "does not hold", measured, evidence=both)
