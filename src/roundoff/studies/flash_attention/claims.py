"""C1-C6 of arXiv 2405.02803, and the comparison of arXiv 2407.08608, as predicates over rows.

Every predicate looks at all recipes and kernels that could make the claim true, since the
paper does not state its rounding, and says what it takes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

from roundoff.metrics import Interval
from roundoff.studies.flash_attention.plan import FORMATS, PAPER_TILE, SWAPPED_TILE, TILES
from roundoff.studies.flash_attention.rows import (
    METRICS,
    paired_ratio,
    pick,
    seeds_of,
    slope,
    spell,
)
from roundoff.studies.study import Claim, Finding, Frame, frame, joined

__all__ = ["CLAIMS"]

TEN_TIMES = (5.0, 20.0)
"""What counts as "about 10x": within a factor of two."""
NEGLIGIBLE = 0.05
"""Exponents up to this are no trend: doubling the length changes the error by 3.5 %."""
SAME = 1.25
"""Ratios within this factor count as one value of the law in n/tile."""
BASELINES = {"kernel:torch-math": "fp32 inside", "recipe:baseline-bf16": "all bf16"}
STATES = {
    "recipe:paper-bf16": "everything in bf16",
    "recipe:fa2-bf16-state": "its state (m, l, O) in bf16",
    "recipe:fa2": "its state in fp32",
}
REAL = {
    "kernel:torch-cpu-flash": "torch CPU flash", "kernel:torch-flex": "compiled FlexAttention",
    "kernel:torch-cuda-flash": "torch CUDA flash", "kernel:torch-cuda-efficient": "mem-efficient",
    "kernel:torch-cuda-cudnn": "cuDNN",
}  # fmt: skip


def _c1(rows: Frame) -> Finding:
    table = ratio_map(rows)
    paper = table[(table["metric"] == "max error") & (table["inputs"] == "normal")]
    emulated = paper[paper["candidate"].isin(STATES)]
    about = emulated[emulated["ratio"].between(*TEN_TIMES) & (emulated["low"] > 2.0)]
    real = table[table["candidate"].isin(REAL)]
    worst = real.loc[real["ratio"].idxmax()]
    kernels = f"real kernels at most {_cell(worst)} ({REAL[worst['candidate']]})"
    if about.empty:
        top = emulated.loc[emulated["ratio"].idxmax()]
        return Finding("does not hold", f"at most {_cell(top)}; {kernels}", evidence=table)
    best = about.loc[(about["ratio"].apply(math.log10) - 1.0).abs().idxmin()]
    where = f"{_short(best['candidate'])}, tile {best['tile']:.0f}, n {best['seq_len']:.0f}"
    states = " or ".join(dict.fromkeys(STATES[c] for c in about["candidate"]))
    tiles = (about["seq_len"] / about["tile"]).groupby(about["baseline"]).min()
    needs = " and ".join(
        f"n/tile >= {tiles[base]:.0f} against a baseline {name}"
        for base, name in BASELINES.items()
        if base in tiles.index
    )
    condition = f"flash keeps {states}, and {needs}"
    return Finding("holds only if", f"{_cell(best)} ({where}); {kernels}", condition, table)


def _cell(row: Frame) -> str:
    return f"{row['ratio']:.2g}x [{row['low']:.2g}, {row['high']:.2g}]"


def ratio_map(rows: Frame) -> Frame:
    """Flash over baseline for each candidate x baseline x inputs x length x tile x metric."""
    bf16 = rows[(rows["format"] == "bf16") & rows["q_tile"].isna()]
    lines: list[Mapping[str, object]] = []
    for candidate, base in itertools.product((*STATES, *REAL), BASELINES):
        mine = bf16[(bf16["candidate"] == candidate) & (bf16["baseline"] == "kernel:torch-math")]
        for (inputs, n), part in mine.groupby(["inputs", "seq_len"]):
            against = pick(bf16, base, inputs=inputs, seq_len=n, tile=None)
            against = against[against["baseline"] == "kernel:torch-math"]
            for tile, cells in part.groupby("tile", dropna=False):
                for metric, name in METRICS.items():
                    lines.append(
                        {"candidate": candidate, "baseline": base, "inputs": inputs, "seq_len": n,
                         "tile": tile, "metric": name}
                        | _numbers(paired_ratio(cells, against, metric))
                    )  # fmt: skip
    return frame(lines)


def _numbers(interval: Interval) -> dict[str, float]:
    return {"ratio": interval.estimate, "low": interval.low, "high": interval.high}


def _c2(rows: Frame) -> Finding:
    lines: list[Mapping[str, object]] = []
    for inputs, kind in itertools.product(("normal", "outliers"), ("paper", "baseline")):
        for wide, narrow in itertools.pairwise(reversed(FORMATS)):
            ratio = paired_ratio(
                _in_format(rows, kind, narrow, inputs), _in_format(rows, kind, wide, inputs), "rmse"
            )
            step = f"{narrow} over {wide}"
            lines.append({"inputs": inputs, "recipe": kind, "step": step} | _numbers(ratio))
    table = frame(lines)
    falls = (table["low"] > 1).all()
    least = table.loc[table["ratio"].idxmin()]
    measured = f"every step lowers rmse; the least by {_cell(least)} ({least['step']})"
    if falls:
        return Finding("holds", measured, evidence=table)
    return Finding("does not hold", f"{least['step']}: {_cell(least)}", evidence=table)


def _in_format(rows: Frame, kind: str, format: str, inputs: str) -> Frame:
    base = f"recipe:baseline-{format}"
    return pick(rows, f"recipe:{kind}-{format}", format=format, inputs=inputs, baseline=base)


def _slopes(rows: Frame, axis: str, fixed: str) -> Frame:
    """Slope of log error against log `axis` for each recipe, at every value of `fixed`."""
    lines: list[Mapping[str, object]] = []
    grid = rows[(rows["format"] == "bf16") & rows["q_tile"].isna()]
    grid = grid[grid["tile"].isin([float(t) for t in TILES])]
    for (candidate, inputs, at), part in grid.groupby(["candidate", "inputs", fixed]):
        for metric in ("max_abs_err", "rel_l2"):
            found = slope(part, axis, metric)
            lines.append(
                {"candidate": candidate, "inputs": inputs, fixed: at, "metric": metric,
                 "slope": found.estimate, "low": found.low, "high": found.high}
            )  # fmt: skip
    return frame(lines)


def _c3(rows: Frame) -> Finding:
    table = _slopes(rows, "seq_len", "tile")
    real = _real_slopes(rows)
    table = joined(table, real)
    return _trend(table, sign=1, variable="n")


def _real_slopes(rows: Frame) -> Frame:
    lines: list[Mapping[str, object]] = []
    bf16 = rows[(rows["format"] == "bf16") & (rows["baseline"] == "kernel:torch-math")]
    for candidate in ("kernel:torch-cpu-flash", "kernel:torch-cuda-flash", "kernel:torch-math"):
        for inputs, part in bf16[bf16["candidate"] == candidate].groupby("inputs"):
            for metric in ("max_abs_err", "rel_l2"):
                found = slope(part.drop_duplicates(["seed", "seq_len"]), "seq_len", metric)
                lines.append(
                    {"candidate": candidate, "inputs": inputs, "tile": None, "metric": metric,
                     "slope": found.estimate, "low": found.low, "high": found.high}
                )  # fmt: skip
    return frame(lines)


def _c4(rows: Frame) -> Finding:
    return _trend(_slopes(rows, "tile", "seq_len"), sign=-1, variable="tile")


def _trend(table: Frame, *, sign: int, variable: str) -> Finding:
    """Judge the exponent of the relative error for each candidate, over all inputs.

    A trend counts if its interval lies beyond `NEGLIGIBLE` in every group. Relative, because
    absolute errors shrink with n as outputs do; the maximum on N(0, 1) is told beside it.
    """
    edge = table["low"] if sign > 0 else -table["high"]
    table = table.assign(holds=edge > NEGLIGIBLE)
    relative = table[table["metric"] == "rel_l2"]
    holds = relative.groupby("candidate", sort=False)["holds"].all()
    middle = relative.groupby("candidate", sort=False)["slope"].median()
    words = ", ".join(f"{variable}^{middle[c]:.2f} {_short(str(c))}" for c in holds.index)
    plain = table[(table["metric"] == "max_abs_err") & (table["inputs"] == "normal")]
    largest = plain.groupby("candidate", sort=False)["slope"].median()
    spread = f"{variable}^{largest.min():.2f} to {variable}^{largest.max():.2f}"
    measured = f"relative error goes as {words}; max error on N(0, 1) as {spread}"
    if holds.all():
        return Finding("holds", measured, evidence=table)
    if not holds.any():
        return Finding("does not hold", measured, evidence=table)
    states = [STATES.get(str(c), _short(str(c))) for c in holds[holds].index]
    condition = f"flash keeps {' or '.join(dict.fromkeys(states))}"
    return Finding("holds only if", measured, condition, table)


def _short(candidate: str) -> str:
    return candidate.partition(":")[2]


def _c5(rows: Frame) -> Finding:
    paper = pick(rows, "recipe:paper-bf16", tile=PAPER_TILE, q_tile=SWAPPED_TILE)
    swapped = pick(rows, "recipe:paper-bf16", tile=SWAPPED_TILE, q_tile=PAPER_TILE)
    ratios = {name: paired_ratio(swapped, paper, metric) for metric, name in METRICS.items()}
    table = frame([{"metric": n} | _numbers(r) for n, r in ratios.items()])
    measured = ", ".join(f"{name} {spell(ratio)}" for name, ratio in ratios.items())
    measured += f" (keys a tile {PAPER_TILE} to {SWAPPED_TILE})"
    if all(r.low > 1 for r in ratios.values()):
        condition = "it is C4: the swap makes the key tile smaller, the query tile does nothing"
        return Finding("holds", measured, condition, table)
    outcome = "does not hold" if all(r.high < 1 for r in ratios.values()) else "cannot tell"
    return Finding(outcome, measured, "", table)


def _c6(rows: Frame) -> Finding:
    pairs = [(PAPER_TILE, PAPER_TILE), (PAPER_TILE, SWAPPED_TILE)]
    square, oblong = (
        pick(rows, "recipe:paper-bf16", tile=keys, q_tile=queries) for keys, queries in pairs
    )
    equal = all((seeds_of(square, m) == seeds_of(oblong, m)).all() for m in METRICS)
    measured = "square and oblong query tiles give the same errors in every seed"
    if equal:
        condition = "exact by construction: rows do not meet in the forward pass"
        return Finding("holds", measured, condition)
    return Finding("does not hold", "errors differ between square and oblong query tiles")


def _law(rows: Frame) -> Finding:
    table = ratio_map(rows)
    chosen = (table["candidate"] == "recipe:paper-bf16") & (table["metric"] == "rmse")
    table = table[chosen & (table["baseline"] == "recipe:baseline-bf16")]
    table = table.assign(tiles=table["seq_len"] / table["tile"])
    groups = table.groupby(["inputs", "tiles"])["ratio"].agg(["min", "max", "median", "count"])
    shared = groups[groups["count"] > 1]
    spread = float((shared["max"] / shared["min"]).max())
    normal = groups.loc["normal"]["median"]
    words = ", ".join(f"{value:.2g}x at {tiles:.0f}" for tiles, value in normal.items())
    measured = (
        f"rmse over all-bf16 attention by n/tile, N(0, 1): {words}; "
        f"cells of one n/tile differ by at most {100 * (spread - 1):.0f} %"
    )
    return Finding("holds" if spread <= SAME else "does not hold", measured, evidence=table)


def _fa3_16(rows: Frame) -> Finding:
    fp16 = rows[(rows["format"] == "fp16") & (rows["baseline"] == "kernel:torch-math")]
    lines: list[Mapping[str, object]] = []
    standards = ("kernel:torch-math-reduced", "recipe:baseline-fp16", "kernel:torch-math")
    flashes = ("recipe:fa2", "kernel:torch-cpu-flash", "kernel:torch-cuda-flash")
    have = set(fp16["candidate"])
    keys = ["inputs", "seq_len"]
    for (inputs, n), part in fp16.groupby(keys):
        for standard, flash in itertools.product(standards, flashes):
            if {standard, flash} <= have:
                ratio = paired_ratio(pick(part, standard), pick(part, flash), "rmse")
                lines.append(
                    {"inputs": inputs, "seq_len": n, "standard": standard, "flash": flash}
                    | _numbers(ratio)
                )
    table = frame(lines)
    return _fa3_verdict(table, fp16)


def _fa3_verdict(table: Frame, fp16: Frame) -> Finding:
    better = table.assign(holds=table["low"] > 1)
    share = better.groupby("standard")["holds"].mean()
    fits = [s for s in share.index if share[s] == 1]
    out = table[(table["inputs"] == "outliers") & (table["flash"] == "recipe:fa2")]
    words: list[str] = []
    for standard, part in out.groupby("standard"):
        words.append(
            f"{_short(str(standard))} {part['ratio'].min():.2g}-{part['ratio'].max():.2g}x"
        )
    rmse = [pick(fp16, c, inputs="outliers")["out_rmse"].median()
            for c in ("recipe:baseline-fp16", "recipe:fa2")]  # fmt: skip
    measured = (
        f"rmse over fa2's, outliers: {', '.join(words)}; "
        f"median rmse {rmse[0]:.1e} all fp16, {rmse[1]:.1e} fa2"
    )
    if len(fits) == len(share):
        return Finding("holds", measured, evidence=better)
    if not fits:
        return Finding("does not hold", measured, evidence=better)
    names = " or ".join(_short(str(s)) for s in fits)
    condition = f"standard attention rounds its intermediates to fp16 ({names})"
    return Finding("holds only if", measured, condition, better)


def _fa3_8(rows: Frame) -> Finding:
    fp16 = rows[(rows["format"] == "fp16") & (rows["baseline"] == "kernel:torch-math")]
    lines: list[Mapping[str, object]] = []
    for (inputs, n), part in fp16.groupby(["inputs", "seq_len"]):
        best = pick(part, "recipe:fa3-fp8")
        for other in ("fp8-per-tensor", "fa3-fp8-no-blocks", "fa3-fp8-no-rotation"):
            ratio = paired_ratio(pick(part, f"recipe:{other}"), best, "rmse")
            lines.append({"inputs": inputs, "seq_len": n, "other": other} | _numbers(ratio))
    table = frame(lines)
    outliers = table[table["inputs"] == "outliers"]
    middle = outliers.groupby("other")["ratio"].median()
    rmse = pick(fp16, "recipe:fa3-fp8", inputs="outliers")["out_rmse"].median()
    words = ", ".join(f"{name} {value:.2g}x" for name, value in middle.items())
    measured = f"rmse over fa3-fp8's ({rmse:.1e}), outliers: {words}"
    tensor = table[table["other"] == "fp8-per-tensor"]
    sure = tensor.groupby("inputs")["low"].min() > 1
    if sure.all():
        return Finding("holds", measured, evidence=table)
    if sure.any():
        names = ", ".join(str(i) for i in sure.index[sure])
        return Finding("holds only if", measured, f"inputs are {names}", table)
    return Finding("does not hold", measured, evidence=table)


CLAIMS = (
    Claim("C1", "At bf16, flash deviates from golden about 10x more than the baseline",
          "about 10x, max |error|", _c1),
    Claim("C2", "Deviation falls as mantissa bits rise", "monotone from bf16 to fp64", _c2),
    Claim("C3", "Deviation grows with sequence length at a fixed tile", "more rescales", _c3),
    Claim("C4", "Larger tiles deviate less", "fewer rescales", _c4),
    Claim("C5", "Swapping the order of the block's sides deviates more", "larger", _c5),
    Claim("C6", "Square tiles have no effect", "no effect", _c6),
    Claim("FA3-16", "In fp16 with outliers, flash is more accurate than standard attention",
          "1.7x: 3.2e-4 against 1.9e-4 rmse", _fa3_16),
    Claim("FA3-8", "In FP8, block scales and rotated Q, K are more accurate than a scale a tensor",
          "2.6x: 2.4e-2 against 9.1e-3 rmse", _fa3_8),
    Claim("LAW", "All-bf16 flash over all-bf16 attention depends on the number of tiles alone",
          "ours, not the paper's", _law),
)  # fmt: skip
