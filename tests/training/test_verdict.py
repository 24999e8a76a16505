"""Distances in yardsticks, growth and direct errors, from lines whose truth is known."""

import math

import pytest

from roundoff.metrics.intervals import ratio_interval
from roundoff.training.verdict import (
    arms_of,
    broken,
    direct_errors,
    distance,
    growth,
    losses,
    steps_of,
    units,
)

STEPS = (1, 10, 100)


def record(repeat, direct=None, **arms):
    """A repeat whose arm has `arms[arm](step)` for a distance."""
    return {
        "training": {"repeat": repeat},
        "distances": {a: [{"step": s, "rel_l2": f(s)} for s in STEPS] for a, f in arms.items()},
        "log": {a: [{"step": s, "loss": 1 / s + repeat} for s in STEPS] for a in arms},
        "direct": direct or {},
    }


def law(size, power=1.0):
    return lambda step: size * step**power


RECORDS = [
    record(i, mine=law(2.0 * (1 + i)), ulp=law(1.0 * (1 + i)), still=lambda s: 0.0)
    for i in range(4)
]


def test_units_are_paired_by_repeat():
    found = units(RECORDS, ["mine"], ["ulp"])
    assert [u.step for u in found] == list(STEPS)
    for u in found:
        assert (u.ratio.low, u.ratio.high) == pytest.approx((2.0, 2.0))  # the spread is shared


def test_units_have_student_intervals():
    sizes = (1.0, 2.0, 4.0)
    records = [record(i, mine=law(size), ulp=law(1.0)) for i, size in enumerate(sizes)]
    [at, *_] = units(records, ["mine"], ["ulp"])
    assert at.ratio == ratio_interval(sizes, (1.0, 1.0, 1.0))


def test_no_ratio_to_an_arm_that_is_exactly_0():
    [still, *_] = units(RECORDS, ["mine"], ["still"])
    assert still.ratio is None
    assert still.why == "still is exactly 0"
    [other, *_] = units(RECORDS, ["still"], ["ulp"])
    assert other.ratio is None


def test_an_arm_in_fewer_repeats_is_paired_with_those():
    records = [*RECORDS[:1], record(1, mine=law(6.0))]
    [at, *_] = units(records, ["mine"], ["ulp"])
    assert at.ratio.n == 1
    assert not units(records, ["mine"], ["nobody"])[0].ratio


def test_what_is_not_finite_is_said():
    records = [record(i, mine=lambda s: math.nan, ulp=law(1.0)) for i in range(3)]
    [at, *_] = units(records, ["mine"], ["ulp"])
    assert at.ratio is None
    assert at.why == "mine is nan"
    assert math.isnan(distance(records, "mine", 1).estimate)


def logged(repeat, **logs):
    """A repeat with logs of (loss, norm of the gradient, maybe whether the step was skipped)."""
    keys = ("loss", "grad_norm", "skipped")
    return {
        "training": {"repeat": repeat},
        "distances": {arm: [] for arm in logs if arm != "baseline"},
        "log": {
            arm: [{"step": i, **dict(zip(keys, at, strict=False))} for i, at in enumerate(log, 1)]
            for arm, log in logs.items()
        },
    }


def test_who_was_not_finite_from_when_on_and_in_which_repeats():
    fine, nan, inf = (1.0, 1.0), (math.nan, 1.0), (2.0, math.inf)
    records = [
        logged(0, baseline=[fine] * 4, gone=[fine, fine, fine, nan], back=[fine, inf, fine, fine],
               scaled=[(1.0, math.inf, True), *[fine] * 3]),
        logged(1, baseline=[fine] * 4, gone=[fine, fine, nan, nan], back=[fine] * 4),
        logged(2, baseline=[fine] * 4, gone=[fine] * 4),
    ]  # fmt: skip
    gone, back = broken(records)
    assert (gone.arm, gone.step, gone.repeats, gone.of, gone.lasts) == ("gone", 3, (0, 1), 3, True)
    assert str(gone).startswith("gone: its loss is NaN from step 3 on in repeat 0, 1 of 3: it div")
    assert str(back) == "back: its gradient is inf first at step 2 in repeat 0 of 2: " \
        "it was finite again later"  # fmt: skip
    [base] = broken([logged(0, baseline=[fine, nan], arm=[fine, fine])])
    assert "from step 2 on: after it nothing can be compared" in str(base)


@pytest.mark.parametrize("power", [-0.5, 0.0, 1.0, 2.5])
def test_growth_is_the_local_power(power):
    records = [record(i, mine=law(3.0 + i, power)) for i in range(3)]
    for g in growth(records, "mine"):
        assert g.power.estimate == pytest.approx(power)
    assert [g.power for g in growth(RECORDS, "still")] == [None, None]


def test_arms_steps_and_losses():
    assert arms_of(RECORDS) == ["mine", "ulp", "still"]
    assert steps_of(RECORDS) == list(STEPS)
    assert losses(RECORDS, "mine")[1] == (10, pytest.approx(0.1 + 1.5))
    assert distance(RECORDS, "still", 10).estimate == 0.0


def judged(verdict, size, gain):
    one = {
        "verdict": verdict,
        "size": size,
        "detectable": 1e-3,
        "gain": {"value": gain},
        "why": "so it is",
    }
    found = {"verdict": verdict, "all": one, "tensors": [one], "samples": 8, "redrawn": 2}
    return {"mine": {"gradient": found, "update": None, "given_up": 3}}


def test_the_gravest_word_of_all_repeats_counts():
    records = [
        record(0, judged("noise", 1.0, 5e-2), mine=law(1)),
        record(1, judged("biased", 4.0, -1e-2), mine=law(1)),
    ]
    found = direct_errors(records, "mine")
    assert (found.verdict, found.counts) == ("biased", {"biased": 1, "noise": 1})
    assert found.gain == -1e-2
    assert found.size.estimate == pytest.approx(2.0)
    assert (found.samples, found.given_up) == (20, 6)
    assert direct_errors(records, "mine", "update") is None
