"""The claim on inputs of a trained model, beside those that are constructed.

The independent units are the captured batches, so that intervals speak of this one model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from roundoff.metrics import ratio_interval, t_interval
from roundoff.studies.low_precision_failure.claims import LEAST, gains
from roundoff.studies.low_precision_failure.plan import FINE, KERNELS, NARROW, REMEDIED, TIED
from roundoff.studies.rows import complete, pick, short
from roundoff.studies.study import Answer, Claim, Frame, frame, joined

__all__ = ["TRAINED", "gains_of_files"]

STRAIGHT = "kernel:torch-math"
REMEDY = {
    "recipe:failure-bf16": "recipe:failure-bf16-tie-safe",
    "recipe:paper-bf16": "recipe:paper-bf16-tie-safe",
}
"""The same recipe with the maximum that ties cannot harm."""
SHARED = "candidate", "inputs", "tile", "gain", "low", "high", "rmse", "tied"


def gains_of_files(rows: Frame, candidates: Iterable[str]) -> Frame:
    """Gain, and rmse over that of golden rounded once, with intervals over files, by tile."""
    rows = rows[rows["inputs"].astype(str).str.startswith("file:")]
    straight = pick(rows, STRAIGHT).set_index("inputs")["out_rmse"]
    lines: list[Mapping[str, object]] = []
    for candidate in candidates:
        found = pick(rows, candidate)
        if found.empty:
            raise ValueError(f"{candidate} on files was not measured")
        for tile, part in found.groupby("tile", dropna=False):
            one = part.set_index("inputs").sort_index()
            gain = t_interval(one["out_gain"].tolist())
            size = ratio_interval(one["out_rmse"].tolist(), straight.loc[one.index].tolist())
            lines.append(
                {"candidate": candidate, "inputs": "trained", "tile": tile, "batches": len(one),
                 "gain": gain.estimate, "low": gain.low, "high": gain.high,
                 "rmse": one["out_rmse"].mean(), "ratio": size.estimate, "ratio_low": size.low,
                 "ratio_high": size.high, "tied": one["condition_tied"].mean()}
            )  # fmt: skip
    return complete(frame(lines), "gain", "low", "high", "ratio", "tied")


def trained(rows: Frame) -> Answer:
    """Every narrow state must stretch on the captured inputs, in its own tile.

    Where not all do, or only in small tiles, that is the condition; and so is whether the
    tie-safe maximum takes it away, since ties are why only if it does.
    """
    names = [*NARROW, *(f"recipe:{name}" for name in REMEDIED), STRAIGHT]
    names += [k for k in map("kernel:{}".format, KERNELS) if k in {*rows["candidate"]}]
    table = gains_of_files(rows, names)
    ties = complete(pick(rows, STRAIGHT, inputs=TIED, gradients="no"), "condition_tied")
    tied = gains(rows, NARROW, [TIED])
    tied = tied[tied["tile"].isna()].assign(tied=ties["condition_tied"].mean())
    measured, evidence = _measured(table, tied), joined(table, tied[[*SHARED]])
    stretched = table[table["candidate"].isin(NARROW) & (table["low"] > LEAST)]
    if {*stretched[stretched["tile"].isna()]["candidate"]} == {*NARROW}:
        return Answer("holds", measured, evidence=evidence)
    if stretched.empty:
        return Answer("does not hold", measured, evidence=evidence)
    return Answer("holds only if", measured, _condition(table, stretched), evidence)


def _measured(table: Frame, tied: Frame) -> str:
    own = table[table["tile"].isna()].set_index("candidate")
    small = table[table["tile"] == FINE].set_index("candidate")
    constructed = tied.groupby("candidate")["gain"].max()
    shares = [f"{100 * t['tied'].iloc[0]:.3g} %" for t in (own, tied)]
    words: list[str] = []
    for name, what in NARROW.items():
        size = "{ratio:.2g}x [{ratio_low:.2g}, {ratio_high:.2g}]".format(**own.loc[name])
        words.append(
            f"{what} {_gain(own.loc[name])}, in tiles of {FINE} keys {_gain(small.loc[name])}, "
            f"constructed {constructed[name]:+.1e}, rmse {size} torch-math's"
        )
    others = [name for name in own.index if name not in NARROW]
    rest = ", ".join(f"{short(name)} {own.loc[name, 'gain']:+.1e}" for name in others)
    ties = f"rows with a tied maximum {shares[0]}, constructed {shares[1]}"
    return "; ".join([ties, f"gain: {words[0]}", *words[1:], rest])


def _gain(row: Frame) -> str:
    return f"{row['gain']:+.1e} [{row['low']:+.1e}, {row['high']:+.1e}]"


def _condition(table: Frame, stretched: Frame) -> str:
    """Which states stretch, in which tiles, and whether the tie-safe maximum takes it away."""
    kinds = [
        f"{NARROW[str(candidate)]} ({' and '.join(map(_tile, part['tile']))})"
        for candidate, part in stretched.groupby("candidate", sort=False)
    ]
    words = f"the state is {' or '.join(kinds)}"
    remedies = stretched.assign(candidate=stretched["candidate"].map(REMEDY))
    safe = table.merge(remedies[["candidate", "tile"]], on=["candidate", "tile"])
    if len(safe) and (safe["low"] > LEAST).all():
        return f"{words}; ties are not why: the tie-safe maximum leaves it"
    if len(safe) and (safe["high"] < LEAST).all():
        return f"{words}; ties are why: the tie-safe maximum removes it"
    return words


def _tile(keys: float) -> str:
    return f"tiles of {keys:.0f} keys" if keys > 0 else "tiles of its own"


TRAINED = Claim(
    "TRAINED", "On inputs of a trained model narrow states stretch the output as on ties",
    "ours, not the paper's", trained,
)  # fmt: skip
