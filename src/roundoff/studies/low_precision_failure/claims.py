"""The claims of arXiv 2510.04212 that one operator call can decide, as predicates over rows.

Bias is the gain <e, g> / <g, g>, over seeds. Golden rounded once (torch-math) has a gain of its
own on these inputs, towards zero: so what is asked is whether a recipe stretches the output.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from roundoff.metrics import ratio_interval, t_interval
from roundoff.studies.low_precision_failure.plan import CONTROLS, KERNELS, NARROW, REAL, TIED, TILES
from roundoff.studies.rows import complete, numbers, pick, seeds_of, short, spell
from roundoff.studies.study import Answer, Claim, Frame, frame, joined

__all__ = ["CLAIMS", "LEAST", "gains"]

LEAST = 2.0**-12
"""The gain that counts as bias: a 32nd of bf16's epsilon, a third of what a stretch gives."""
REMOVED = 5.0
"""The factor by which a remedy must lower an error to have removed it."""
EXACT = 1e-13
"""The relative error of an exact computation in float64."""
BARE = "recipe:failure-bf16"
STRAIGHT = "kernel:torch-math"


def gains(rows: Frame, candidates: Iterable[str], inputs: Iterable[str]) -> Frame:
    """Gain with its interval over seeds, and sizes, for each candidate, input, length and tile."""
    lines: list[Mapping[str, object]] = []
    for candidate in candidates:
        for name in inputs:
            found = pick(rows, candidate, inputs=name, gradients="no")
            if found.empty:
                raise ValueError(f"{candidate} on {name} was not measured")
            for (n, tile), part in found.groupby(["seq_len", "tile"], dropna=False):
                gain = t_interval(seeds_of(part, "gain").tolist())
                sizes = {m: seeds_of(part, m).mean() for m in ("sign_bias", "rmse", "rel_l2")}
                lines.append(
                    {"candidate": candidate, "inputs": name, "seq_len": n, "tile": tile,
                     "gain": gain.estimate, "low": gain.low, "high": gain.high} | sizes
                )  # fmt: skip
    return complete(frame(lines), "gain", "low", "high")


def _own(table: Frame) -> Frame:
    """The rows in which a recipe has its own tile."""
    return table[table["tile"].isna()]


def _words(table: Frame, names: Mapping[str, str] | None = None) -> str:
    """The worst length of each candidate: gain with its interval, and rmse."""
    words: list[str] = []
    for candidate, part in table.groupby("candidate", sort=False):
        row = part.loc[part["gain"].abs().idxmax()]
        name = (names or {}).get(str(candidate), short(candidate))
        words.append(
            f"{name} {row['gain']:+.1e} [{row['low']:+.1e}, {row['high']:+.1e}], "
            f"rmse {row['rmse']:.1e}"
        )
    return "; ".join(words)


def _stretched(table: Frame) -> bool:
    return bool((table["low"] > LEAST).all())


def _straight(table: Frame) -> bool:
    return bool((table["high"] < LEAST).all())


def bias(rows: Frame) -> Answer:
    """Every narrow state must stretch on ties with one-signed V, and none on the controls."""
    tied = _own(gains(rows, NARROW, [TIED]))
    control = _own(gains(rows, NARROW, CONTROLS))
    least = control.loc[control["gain"].abs().idxmax()]
    measured = f"gain: {_words(tied, NARROW)}; controls at most {least['gain']:+.1e}"
    good = _stretched(tied) and _straight(control)
    return Answer("holds" if good else "does not hold", measured, evidence=joined(tied, control))


def tile(rows: Frame) -> Answer:
    """The bias at every tile, one tile for all keys included."""
    table = gains(rows, NARROW, [TIED])
    table = table[table["tile"].notna()]
    if not {*TILES} < {*table["tile"]}:
        raise ValueError("a tile was not measured")
    whole = table[table["tile"] > max(TILES)]
    middle = table.groupby("tile")["gain"].mean()
    smaller = ", ".join(f"{gain:+.1e} at {n:.0f}" for n, gain in middle.items() if n <= max(TILES))
    measured = f"gain in one tile: {_words(whole, NARROW)}; mean in tiles of keys: {smaller}"
    if not _stretched(whole):
        return Answer("does not hold", measured, evidence=table)
    if _stretched(table):
        return Answer("holds", measured, evidence=table)
    condition = "a tile holds enough untied keys to be felt in its fp32 sum: fewer tiles, more bias"
    return Answer("holds only if", measured, condition, table)


def fp32_output(rows: Frame) -> Answer:
    """O in fp32, with l in fp32 (fa2) and with l in bf16."""
    names = {"recipe:fa2": "l in fp32 too", "recipe:fa2-bf16-sum": "l in bf16",
             STRAIGHT: "golden rounded once (torch-math)"}  # fmt: skip
    table = _own(gains(rows, names, [TIED]))
    both, other, _ = (table[table["candidate"] == name] for name in names)
    measured = f"gain with O in fp32: {_words(table, names)}"
    if not _straight(both):
        return Answer("does not hold", measured, evidence=table)
    if _straight(other):
        return Answer("holds", measured, evidence=table)
    condition = "l is in fp32 too: l in bf16 rounds 2 + a little down to 2, which stretches alike"
    return Answer("holds only if", measured, condition, table)


def tie_safe(rows: Frame) -> Answer:
    """The tied-maximum rule: no bias left, and no error at all without rounding."""
    names = ["recipe:failure-bf16-tie-safe", "recipe:paper-bf16-tie-safe", "recipe:tie-safe-fp64"]
    table = _own(gains(rows, [BARE, *names], [TIED]))
    safe = table[table["candidate"].isin(names[:2])]
    bare = table[table["candidate"] == BARE]
    error = table[table["candidate"] == names[2]]["rel_l2"].max()
    size = safe["rmse"].max() / bare["rmse"].min()
    measured = (
        f"gain: {_words(safe)}; without rounding its relative error is {error:.0e}; "
        f"rmse up to {size:.2g}x that without the rule"
    )
    good = _straight(safe) and bool((safe["low"] > -LEAST).all()) and error < EXACT
    return Answer("holds" if good else "does not hold", measured, evidence=table)


def offset(rows: Frame) -> Answer:
    """A maximum that is too large by a constant: one that keeps P a power of two, one that not."""
    names = {"recipe:failure-bf16-offset-half": "tied P at 1/2",
             "recipe:failure-bf16-offset": "tied P at exp(-1)"}  # fmt: skip
    table = _own(gains(rows, names, [TIED]))
    half, other = (table[table["candidate"] == name] for name in names)
    measured = f"gain: {_words(table, names)}"
    if _stretched(half) and not _straight(other):
        return Answer("holds", measured, evidence=table)
    if _stretched(half):
        condition = "the offset leaves tied P a power of two; where it does not, the bias goes"
        return Answer("holds only if", measured, condition, table)
    return Answer("does not hold", measured, evidence=table)


def delta(rows: Frame) -> Answer:
    """The error of dq with D from the stored O over that with D from P and dP, seed by seed.

    Where all of a row's weight lies on equal keys, dq is 0 but for the rest: an error of D is
    all that it holds.
    """
    lines: list[Mapping[str, object]] = []
    for candidate in (BARE, "recipe:fa2"):
        mine, other = (
            pick(rows, name, inputs=TIED, gradients="yes")
            for name in (candidate, "recipe:failure-bf16-delta-weights")
        )
        for n, part in mine.groupby("seq_len"):
            both = part.merge(other[other["seq_len"] == n], on="seed", suffixes=("", "_other"))
            values = complete(both, "dq_rmse", "dq_rmse_other", "dq_rel_l2")
            ratio = ratio_interval(values["dq_rmse"].tolist(), values["dq_rmse_other"].tolist())
            size = float(values["dq_rel_l2"].median())
            lines.append({"candidate": candidate, "seq_len": n, "relative": size} | numbers(ratio))
    table = complete(frame(lines), "ratio", "low", "high")
    words = "; ".join(
        f"{short(row['candidate'])} {spell(row)}, {row['relative']:.0f}x dq itself"
        for _, row in table.loc[table.groupby("candidate", sort=False)["ratio"].idxmin()].iterrows()
    )
    measured = f"rmse of dq with D from the stored O over that with D from P: {words}"
    good = bool((table["low"] > REMOVED).all())
    return Answer("holds" if good else "does not hold", measured, evidence=table)


def kernels(rows: Frame) -> Answer:
    """Real kernels, and recipes of those that do not run here, on ties and on the control."""
    planned = {*rows["candidate"]}  # a kernel that does not run on this machine is in no plan
    names = [STRAIGHT, *(k for k in map("kernel:{}".format, KERNELS) if k in planned)]
    names += [f"recipe:{r}" for r in REAL]
    table = _own(gains(rows, names, [TIED, "tied-peak"]))
    groups: dict[str, list[str]] = {"by the sign of V": [], "by ties alone": [], "not at all": []}
    for name in names:
        mine = table[table["candidate"] == name]
        tied, control = (mine[mine["inputs"] == i] for i in (TIED, "tied-peak"))
        kind = "not at all" if not _stretched(tied) else (
            "by ties alone" if _stretched(control) else "by the sign of V"
        )  # fmt: skip
        groups[kind].append(f"{short(name)} {tied['gain'].mean():+.1e}")
    words = [f"{kind}: {', '.join(found)}" for kind, found in groups.items() if found]
    measured = f"stretched {'; '.join(words)}"
    affected = [*groups["by the sign of V"], *groups["by ties alone"]]
    if not affected:
        return Answer("does not hold", measured, evidence=table)
    condition = "P, l or exp(0) is rounded so that the weights of V add up to more than 1"
    return Answer("holds only if", measured, condition, table)


CLAIMS = (
    Claim("BIAS", "Ties of the maximum with one-signed V bias the output of a bf16 state",
          "rounding is one-sided", bias),
    Claim("TILE", "The tile size does not matter: one tile for all keys fails too",
          "still fails with one tile", tile),
    Claim("FP32-O", "Keeping O in fp32 removes the bias", "training is stable", fp32_output),
    Claim("TIE-SAFE", "Another maximum on tied rows removes it, and is exact in real arithmetic",
          "training is stable", tie_safe),
    Claim("OFFSET", "A fixed offset of the maximum does not remove it", "still biased", offset),
    Claim("DELTA", "D = rowsum(P dP) in place of rowsum(dO O) removes the error of dq",
          "training is stable", delta),
    Claim("KERNELS", "Real kernels have the mechanism", "ours, not the paper's", kernels),
)  # fmt: skip
