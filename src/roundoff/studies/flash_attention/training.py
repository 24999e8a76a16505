"""C7-C10 of "Is Flash Attention Stable?": weights of paired runs, with the controls it lacked.

The paper names neither its model nor its steps. Here a text-to-image transformer learns captioned
letters; distances are those of all weights after a step; and the slope of an arm, which C8 and C9
speak of, is the increase of its distance per step, from the first step to the last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from roundoff.metrics.intervals import Interval, ratio_interval
from roundoff.records.verdict import Outcome
from roundoff.studies.study import Answer, Claim, frame
from roundoff.training.experiment import Experiment
from roundoff.training.verdict import distance, growth, steps_of, units, values

__all__ = ["CLAIMS", "EXPERIMENTS"]

FLASH = "torch-cpu-flash"
METRICS = {"w1": "W1", "max_diff": "max |dW|"}
COMPARABLE = 1.25
"""Up to this ratio two slopes are comparable."""
CLAIMED = 2.0, 5.0
"""How much less flash deviates than low-precision training, as the paper has it."""

Records = Sequence[Mapping[str, Any]]


def _experiment(**size: Any) -> Experiment:
    return Experiment(
        "text-to-image",
        baseline="torch-math",
        candidates=(FLASH,),
        yardsticks=("ulp", "rerun", "data-order", "seed", "bf16", "fp16"),
        timed=True,
        **size,
    )


EXPERIMENTS: dict[str, Callable[[], Experiment]] = {
    "quick": partial(_experiment, steps=60, repeats=3, sampled=60),
    "full": partial(_experiment, steps=300, repeats=6, sampled=150, long=4000),
}


def c7(records: Records) -> Answer:
    """Both distances are above 0 and grow between any two steps at which they are compared."""
    steps = steps_of(records)
    lines: list[dict[str, Any]] = [
        {"metric": METRICS[m], "arm": arm, "from": g.start, "to": g.end,
         "power": g.power.estimate, "low": g.power.low, "high": g.power.high}
        for m in METRICS
        for arm in (FLASH, "ulp")
        for g in growth(records, arm, m)
        if g.power is not None
    ]  # fmt: skip
    flash = [line for line in lines if line["arm"] == FLASH]
    if len(flash) < len(METRICS) * (len(steps) - 1):
        return Answer("does not hold", "a distance is exactly 0", evidence=frame(lines))
    rising = [line for line in flash if line["low"] > 0]
    words = [_from_to(records, FLASH, m) for m in METRICS]
    ulp = _from_to(records, "ulp", "w1")
    measured = (
        f"{' and '.join(words)}, rising in {len(rising)} of {len(flash)} stretches; "
        f"a rerun stays at {_most(records, 'rerun'):.0e}, one ulp of one weight: {ulp}"
    )
    if len(rising) == len(flash):
        return Answer("holds", measured, evidence=frame(lines))
    if all(_whole(records, FLASH, m).low > 1 for m in METRICS):
        flat = len(flash) - len(rising)
        where = f"seen as a whole: {flat} stretch{'es' * (flat != 1)} may as well be flat"
        return Answer("holds only if", measured, where, frame(lines))
    return Answer("does not hold", measured, evidence=frame(lines))


def c8(records: Records) -> Answer:
    """The slope of flash over that of another initial seed: comparable to it, or below."""
    lines: list[dict[str, Any]] = []
    for m, name in METRICS.items():
        flash, seed = _slopes(records, FLASH, m), _slopes(records, "seed", m)
        shared = sorted(flash.keys() & seed.keys())
        # The slope of a saturated arm may have either sign, so its size is what counts.
        ratio = ratio_interval([flash[i] for i in shared], [abs(seed[i]) for i in shared])
        lines.append({"metric": name, "ratio of slopes": ratio.estimate, "low": ratio.low,
                      "high": ratio.high})  # fmt: skip
    told = ", ".join(f"{line['metric']} {_spelled(line, 'ratio of slopes')}" for line in lines)
    start, end = (distance(records, "seed", s).estimate for s in _ends(records))
    measured = (
        f"slope over that of another seed: {told}; that arm has rel_l2 {start:.2g} after the first "
        f"step and {end:.2g} after the last, so it bounds nothing"
    )
    outcome: Outcome = "cannot tell"
    if all(line["high"] <= COMPARABLE for line in lines):
        outcome = "holds"
    elif any(line["low"] > COMPARABLE for line in lines):
        outcome = "does not hold"
    return Answer(outcome, measured, evidence=frame(lines))


def c9(records: Records) -> Answer:
    """Distances of fp16 and bf16 training over those of flash, judged at the last step."""
    lines: list[dict[str, Any]] = [
        {"metric": METRICS[m], "arm": u.candidate, "step": u.step,
         "ratio": u.ratio.estimate, "low": u.ratio.low, "high": u.ratio.high}
        for m in METRICS
        for u in units(records, ("fp16", "bf16"), (FLASH,), metric=m)
        if u.ratio is not None
    ]  # fmt: skip
    first, last = _ends(records)
    at = {(line["metric"], line["arm"], line["step"]): line for line in lines}
    told = "; ".join(
        f"{arm} over flash, {name}: {at[name, arm, first]['ratio']:.2g} at step {first}, "
        f"{_spelled(at[name, arm, last], 'ratio')} at step {last}"
        for arm in ("fp16", "bf16")
        for name in METRICS.values()
    )
    fp16 = [at[name, "fp16", last] for name in METRICS.values()]
    table = frame(lines)
    if any(line["high"] < 1 for line in fp16):
        return Answer("does not hold", told, evidence=table)
    if any(line["low"] <= 1 for line in fp16):
        return Answer("cannot tell", told, evidence=table)
    if all(line["low"] <= CLAIMED[1] and line["high"] >= CLAIMED[0] for line in fp16):
        return Answer("holds", told, evidence=table)
    factor = min(line["ratio"] for line in fp16)
    where = f"any factor will do: it is {factor:.2g} or more at step {last}, and another at others"
    return Answer("holds only if", told, where, table)


def c10(times: Sequence[Mapping[str, Any]]) -> Answer:
    """Forward and backward of a step with flash, over those with the baseline."""
    t = next(t for t in times if t["candidate_name"] == FLASH)
    share = [
        (t[side]["attention_forward"] + t[side]["attention_backward"])
        / (t[side]["forward"] + t[side]["backward"])
        for side in ("baseline", "candidate")
    ]
    kept = t["candidate"]["kept"] / t["baseline"]["kept"] - 1
    measured = (
        f"{100 * (1 - t['ratio']):.0f} % less time [{100 * (1 - t['high']):.0f}, "
        f"{100 * (1 - t['low']):.0f}]; attention is {100 * share[0]:.0f} % of the baseline's step "
        f"and {100 * share[1]:.0f} % of flash's; kept for the backward pass: {100 * kept:+.0f} %"
        f"{_peak(t)}"
    )
    evidence = frame([{"ratio": t["ratio"], "low": t["low"], "high": t["high"], **_parts(t)}])
    outcome: Outcome = "cannot tell"
    if t["high"] < 1 or t["low"] >= 1:
        outcome = "holds" if t["high"] < 1 else "does not hold"
    return Answer(outcome, measured, evidence=evidence)


def _peak(t: Mapping[str, Any]) -> str:
    """What a step takes at its highest, above what stays between steps, where it was measured."""
    peaks = [t[side].get("peak") for side in ("candidate", "baseline")]
    if not all(peaks):
        return ""
    return f", peak memory of a step: {100 * (peaks[0] / peaks[1] - 1):+.0f} %"


def _parts(t: Mapping[str, Any]) -> dict[str, float]:
    return {
        f"{side} {part} ms": round(1e3 * t[side][part], 2)
        for side in ("baseline", "candidate")
        for part in ("forward", "backward")
    }


def _ends(records: Records) -> tuple[int, int]:
    steps = steps_of(records)
    return steps[0], steps[-1]


def _from_to(records: Records, arm: str, metric: str) -> str:
    start, end = (distance(records, arm, s, metric).estimate for s in _ends(records))
    return f"{METRICS[metric]} from {start:.1e} to {end:.1e}"


def _whole(records: Records, arm: str, metric: str) -> Interval:
    """The last distance over the first."""
    first, last = (values(records, arm, s, metric) for s in _ends(records))
    return ratio_interval([last[i] for i in sorted(first)], [first[i] for i in sorted(first)])


def _most(records: Records, arm: str) -> float:
    return max(v for s in steps_of(records) for v in values(records, arm, s, "max_diff").values())


def _slopes(records: Records, arm: str, metric: str) -> dict[int, float]:
    first, last = _ends(records)
    start, end = (values(records, arm, s, metric) for s in (first, last))
    return {i: (end[i] - start[i]) / (last - first) for i in start.keys() & end.keys()}


def _spelled(line: Mapping[str, Any], column: str) -> str:
    return f"{line[column]:.2g} [{line['low']:.2g}, {line['high']:.2g}]"


CLAIMS = (
    Claim("C7", "Flash's weights go apart from the baseline's, more and more",
          "max |dW| and Wasserstein distance grow throughout", c7),
    Claim("C8", "Flash's slope is comparable to, or below, that of another initialisation",
          "comparable or below", c8),
    Claim("C9", "Flash's weights go apart less than those of low-precision training",
          "2-5x less than fp16 against fp32", c9),
    Claim("C10", "Flash makes forward and backward faster", "about 14 %", c10),
)  # fmt: skip
