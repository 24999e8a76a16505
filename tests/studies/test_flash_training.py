"""C7-C10 over lines whose truth is known."""

import pytest

from roundoff.studies import STUDIES
from roundoff.studies.flash_attention.training import EXPERIMENTS, FLASH

STUDY = STUDIES["flash-attention"]
STEPS = (1, 10, 100)


def line(repeat, **arms):
    wobble = 1 + 0.1 * repeat
    found = {
        arm: [
            {"step": s, "rel_l2": f(s) * wobble, "w1": f(s) * wobble, "max_diff": 5 * f(s) * wobble}
            for s in STEPS
        ]
        for arm, f in arms.items()
    }
    return {"training": {"repeat": repeat}, "distances": {FLASH: found.pop("flash"), **found}}


def lines(**changes):
    laws = {
        "flash": lambda s: 1e-7 * s,
        "ulp": lambda s: 1e-7 * s,
        "rerun": lambda s: 0.0,
        "seed": lambda s: 1.0 + 0.01 * s,
        "fp16": lambda s: 3e-7 * s,
        "bf16": lambda s: 4e-7 * s,
    }
    return [line(i, **laws | changes) for i in range(6)]


def times(ratio=0.86, low=0.84, high=0.88):
    side = {"forward": 1.0, "backward": 2.0, "attention_forward": 0.3, "attention_backward": 0.6,
            "kept": 100}  # fmt: skip
    return [{"candidate_name": FLASH, "ratio": ratio, "low": low, "high": high,
             "baseline": side, "candidate": side}]  # fmt: skip


def outcome(claim, records=None, timed=None):
    found = STUDY.judge_training(records or lines(), timed or times())
    return {v.claim: v for v in found}[claim].outcome


def test_all_hold_where_they_do():
    found = {v.claim: v.outcome for v in STUDY.judge_training(lines(), times())}
    assert found == {"C7": "holds", "C8": "holds", "C9": "holds", "C10": "holds"}


@pytest.mark.parametrize(
    ("law", "expected"),
    [
        (lambda s: 0.0, "does not hold"),
        (lambda s: 1e-7 / s, "does not hold"),
        (lambda s: 1e-7 * (10 if s == 10 else s / 10 if s == 1 else 20), "holds"),
        (lambda s: 1e-7 * {1: 1, 10: 50, 100: 40}[s], "holds only if"),
    ],
)
def test_c7_wants_growth_throughout(law, expected):
    assert outcome("C7", lines(flash=law)) == expected


@pytest.mark.parametrize(
    ("law", "expected"), [(lambda s: 0.05 * s, "does not hold"), (lambda s: 0.01 * s, "holds")]
)
def test_c8_compares_slopes(law, expected):
    assert outcome("C8", lines(flash=law)) == expected


@pytest.mark.parametrize(
    ("factor", "expected"), [(0.5, "does not hold"), (3.0, "holds"), (100.0, "holds only if")]
)
def test_c9_wants_the_paper_s_factor(factor, expected):
    assert outcome("C9", lines(fp16=lambda s: factor * 1e-7 * s)) == expected


def test_c10_wants_less_time():
    assert outcome("C10", timed=times(1.1, 1.05, 1.2)) == "does not hold"
    assert outcome("C10", timed=times(1.0, 0.9, 1.1)) == "cannot tell"


def test_nothing_measured_is_cannot_tell():
    found = STUDY.judge_training([], [])
    assert {v.outcome for v in found} == {"cannot tell"}


def test_presets_have_the_controls():
    for make in EXPERIMENTS.values():
        experiment = make()
        assert {"ulp", "rerun", "seed", "data-order", "bf16", "fp16"} == {*experiment.yardsticks}
    assert EXPERIMENTS["full"]().repeats == 6
