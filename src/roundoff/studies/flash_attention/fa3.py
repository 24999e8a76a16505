"""Table 3 of FlashAttention-3 (arXiv 2407.08608) as predicates over rows."""

from __future__ import annotations

from collections.abc import Mapping

from roundoff.studies.flash_attention.paper import REAL
from roundoff.studies.rows import complete, numbers, paired_ratio, pick, short
from roundoff.studies.study import Answer, Frame, frame

__all__ = ["fp8", "fp16"]

CLAIMED_16 = 3.2e-4 / 1.9e-4
CLAIMED_8 = 2.4e-2 / 9.1e-3
STANDARDS = {
    "recipe:baseline-fp16": "stores every result in fp16",
    "kernel:torch-math-reduced": "stores its intermediate tensors in fp16",
    "kernel:torch-math": "is fp32 inside",
}
OTHERS = {
    "recipe:fp8-per-tensor": "one scale a tensor",
    "recipe:fa3-fp8-no-blocks": "without block scales",
    "recipe:fa3-fp8-no-rotation": "without rotation",
}


def _over(rows: Frame, candidates: Mapping[str, str], bases: Mapping[str, str]) -> Frame:
    """rmse of each candidate over each base, at every input and length."""
    fp16 = rows[(rows["format"] == "fp16") & (rows["baseline"] == "kernel:torch-math")]
    have = set(fp16["candidate"])
    lines = [
        {"inputs": inputs, "seq_len": n, "candidate": candidate, "over": base}
        | numbers(paired_ratio(pick(part, candidate), pick(part, base), "rmse"))
        for (inputs, n), part in fp16.groupby(["inputs", "seq_len"])
        for candidate in candidates
        for base in bases
        if {candidate, base} <= have
    ]
    return complete(frame(lines), "ratio", "low", "high")


def fp16(rows: Frame) -> Answer:
    """Standard attention over flash, on inputs with outliers, for three standards."""
    table = _over(rows, STANDARDS, {"recipe:fa2": "", **REAL})
    outliers = table[table["inputs"] == "outliers"]
    grouped = outliers.groupby("candidate", sort=False)
    least, most = grouped["ratio"].min(), grouped["ratio"].max()
    sure = grouped["low"].min() > 1
    words = ", ".join(f"{short(c)} {least[c]:.2g}-{most[c]:.2g}x" for c in least.index)
    measured = f"standard over flash, outliers: {words}"
    fits = [c for c in STANDARDS if sure.get(c, False) and least[c] >= CLAIMED_16]
    if len(fits) == len(least):
        return Answer("holds", measured, evidence=table)
    if not fits:
        return Answer("does not hold", measured, evidence=table)
    condition = f"standard attention {' or '.join(STANDARDS[c] for c in fits)}"
    return Answer("holds only if", measured, condition, table)


def fp8(rows: Frame) -> Answer:
    """One scale a tensor, and each half of FlashAttention-3's remedy left out, over the whole."""
    table = _over(rows, OTHERS, {"recipe:fa3-fp8": ""})
    worst = pick(rows, "recipe:fa3-fp8", inputs="outliers", format="fp16")["out_rmse"].median()
    outliers = table[table["inputs"] == "outliers"].groupby("candidate", sort=False)
    normal = table[table["inputs"] == "normal"].groupby("candidate", sort=False)
    middle, plain = outliers["ratio"].median(), normal["ratio"].median()
    words = ", ".join(f"{OTHERS[str(c)]} {middle[c]:.2g}x" for c in middle.index)
    tensor = "recipe:fp8-per-tensor"
    measured = (
        f"rmse over fa3-fp8's {worst:.1e}, outliers: {words}; "
        f"on N(0, 1) one scale a tensor {plain[tensor]:.2g}x"
    )
    if not outliers["low"].min()[tensor] > 1:
        return Answer("does not hold", measured, evidence=table)
    limits: list[str] = []
    if not normal["low"].min()[tensor] > 1:
        limits.append("there are outliers")
    if middle[tensor] < CLAIMED_8:
        limits.append(f"a factor of {middle[tensor]:.2g} will do")
    outcome = "holds only if" if limits else "holds"
    return Answer(outcome, measured, " and ".join(limits), table)
