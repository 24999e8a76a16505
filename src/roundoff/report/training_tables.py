"""The tables of training: distances, candidates in yardsticks, noise or bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from roundoff.metrics.intervals import Interval, t_interval
from roundoff.metrics.noise_or_bias import RANK, gravest
from roundoff.report.curves import typical
from roundoff.report.figure import show_interval
from roundoff.report.losses import mean_losses
from roundoff.report.rows import estimate
from roundoff.report.tables import Table, table_of
from roundoff.report.trained import BASELINE, Trained
from roundoff.training.verdict import direct_errors, growth, skipped, units, values

__all__ = ["direct_table", "distance_table", "tensor_table", "time_table", "unit_table"]

SIZES = ("w1", "max_diff", "1 - cosine", "ulp_mean", "sign_flips")
MOST_ROWS = 160
"""Of the table of every tensor, which has the gravest first."""
GRAVE: Sequence[str] = RANK
OF = ("gradient", "update")
PARTS = ("forward", "backward", "update")


def distance_table(trained: Trained) -> Table:
    """Every arm after every compared step; geometric means over repeats."""
    losses = mean_losses(trained)
    rows: list[dict[str, object]] = []
    for arm in trained.arms:
        powers = {g.end: g.power for g in growth(trained.lines, arm)}
        for step in trained.steps:
            held = values(trained.lines, arm, step, "rel_l2")
            if held:
                power = powers.get(step)
                rows.append({
                    "arm": trained.names[arm], "step": step,
                    "rel_l2": show_interval(typical(trained, arm, step, "rel_l2")),
                    **{m: typical(trained, arm, step, m).estimate for m in SIZES},
                    "growth": power.estimate if power else None,
                    **_skips(trained, arm, step), "loss": losses.get((arm, step)),
                    "baseline's loss": losses.get((BASELINE, step)), "repeats": len(held),
                })  # fmt: skip
    return table_of(rows)


def _skips(trained: Trained, arm: str, step: int) -> dict[str, object]:
    """Steps that loss scaling has skipped so far, where there is loss scaling."""
    count = skipped(trained.lines, arm, step)
    return {} if count is None else {"skipped steps": count}


def unit_table(trained: Trained) -> Table:
    """Every candidate in units of every yardstick: rel_l2 over rel_l2, at the compared steps."""
    names = trained.names
    rows: dict[tuple[str, str], dict[str, object]] = {}
    for u in units(trained.lines, trained.candidates, trained.yardsticks):
        if u.candidate != u.yardstick:
            pair = f"{names[u.candidate]} in {names[u.yardstick]}"
            row = rows.setdefault((u.candidate, u.yardstick), {"candidate in units of": pair})
            row[f"step {u.step}"] = show_interval(u.ratio) if u.ratio else u.why
    return table_of(list(rows.values()))


def direct_table(trained: Trained) -> Table:
    """Noise or bias of every candidate: its verdict, and all tensors as one, over repeats."""
    rows: list[dict[str, object]] = []
    for candidate, of, found in _judgements(trained):
        whole = [f["all"] for f in found]
        row: dict[str, object] = {"error of": f"{trained.names[candidate]}, {of}"}
        row |= _row(whole, [f["verdict"] for f in found])
        worst = sorted(
            (t for f in found for t in f["tensors"]), key=lambda t: GRAVE.index(t["verdict"])
        )
        row["why"] = f"{worst[0]['name']}: {worst[0]['why']}" if worst else row["why"]
        lost = sum(f["given_up"] for f in found)
        rows.append({**row, "steps sampled": sum(f["samples"] for f in found), "given up": lost})
    for candidate in trained.candidates:
        found = direct_errors(trained.lines, candidate)
        if found and not found.samples:
            head = {"error of": f"{trained.names[candidate]}, gradient", "verdict": found.verdict}
            rows.append({**head, "why": found.why, "given up": found.given_up})
    return table_of(rows)


def tensor_table(trained: Trained) -> Table:
    """The same of every tensor, the gravest first."""
    rows: list[tuple[int, dict[str, object]]] = []
    for candidate, of, found in _judgements(trained):
        tensors: dict[str, list[Mapping[str, Any]]] = {}
        for tensor in (t for f in found for t in f["tensors"]):
            tensors.setdefault(tensor["name"], []).append(tensor)
        for name, held in tensors.items():
            words = [t["verdict"] for t in held]
            head = {"tensor": name, "error of": f"{trained.names[candidate]}, {of}"}
            rows.append((GRAVE.index(gravest(words)), {**head, **_row(held, words)}))
    rows.sort(key=lambda r: r[0])
    table = table_of([row for _, row in rows[:MOST_ROWS]])
    return replace(table, left_out=max(0, len(rows) - MOST_ROWS))


def time_table(times: Sequence[Mapping[str, Any]]) -> Table:
    """Time and memory of a step with each candidate, and with the baseline beside it."""
    rows: list[dict[str, object]] = []
    for t in times:
        ratio = show_interval(Interval(t["ratio"], t["low"], t["high"], t["steps"]))
        for name, side, told in ((t["candidate_name"], "candidate", ratio),
                                 ("baseline", "baseline", "")):  # fmt: skip
            found, peak = t[side], t[side].get("peak")
            rows.append({
                "side": name, **{f"{part} ms": 1e3 * found[part] for part in PARTS},
                "kept for backward, MB": found["kept"] / 1e6,
                "peak of a step, MB": "not measured" if peak is None else peak / 1e6,
                "forward and backward over the baseline's": told,
            })  # fmt: skip
    return table_of(rows)


def _judgements(trained: Trained) -> list[tuple[str, str, list[Mapping[str, Any]]]]:
    """By candidate and what the error is of: the judgements of the repeats that have one."""
    everyone = dict.fromkeys(c for line in trained.lines for c in line["direct"])
    pairs = [(c, of) for c in everyone for of in OF]
    found = [
        (c, of, [d for line in trained.lines if (d := line["direct"].get(c, {}).get(of))])
        for c, of in pairs
    ]
    return [entry for entry in found if entry[2]]


def _row(found: Sequence[Mapping[str, Any]], words: Sequence[Any]) -> dict[str, object]:
    """One tensor over repeats; the reason is that of the gravest verdict."""
    verdict = gravest(words)
    counts = ", ".join(f"{words.count(w)} {w}" for w in RANK if w in words)
    least = min(found, key=lambda t: GRAVE.index(t["verdict"]))
    return {
        "verdict": verdict, "repeats": counts,
        "size": _typical(found, "size"),
        "gain": show_interval(_gain(found, "gain")),
        "redrawn gain": show_interval(_gain(found, "redrawn")),
        "persistence": _typical(found, "persistence"),
        "detectable gain": max(float(t["detectable"]) for t in found),
        "not finite": sum(t["nonfinite"] for t in found), "why": least["why"],
    }  # fmt: skip


def _typical(found: Sequence[Mapping[str, Any]], key: str) -> float:
    return estimate([float(t[key]) for t in found], signed=False).estimate


def _gain(found: Sequence[Mapping[str, Any]], key: str) -> Interval:
    """The gain over repeats with its interval; of a single one, with two standard errors."""
    held = [float(t[key]["value"]) for t in found]
    if len(held) > 1:
        return t_interval(held)
    reach = 2 * float(found[0][key]["se"])
    return Interval(held[0], held[0] - reach, held[0] + reach, 1)
