"""Rules that find spikes: where they are known to be, by laws, and as their sources have them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roundoff.errors import UnknownNameError, UsageError
from roundoff.live.rules import (
    RULES,
    Absolute,
    Detector,
    Max,
    Mean,
    Median,
    NonFinite,
    ZClip,
    find,
    parse_rule,
)

from .labelled import SOUND, SPIKED, labelled, score

LIMITED = [Median(), Mean(), Max(), ZClip(), Absolute(limit=3.0)]
NUMBERS = st.floats(-1e6, 1e6)


def steps_of(values, *rules):
    return [spike.step for spike in find("loss", enumerate(values), *rules)]


def test_the_default_rules_on_what_is_labelled():
    """On a quarter of what benchmarks/spikes.py takes: nine in ten are found, nine in ten right."""
    counts = [score([s.told for s in find("x", one.points)], one) for one in labelled(range(5))]
    hit, spikes, false = np.sum(counts, 0)
    assert hit >= 0.9 * spikes
    assert hit >= 0.9 * (hit + false)


@pytest.mark.parametrize("kind", [*SPIKED, *SOUND])
def test_labels_are_of_the_series(kind):
    values, spikes, *_ = kind(np.random.default_rng(1))
    assert all(0 <= a <= b < len(values) for a, b in spikes)
    usual = np.median(values[np.isfinite(values)])
    assert all(not np.max(values[a : b + 1]) <= usual for a, b in spikes)


@pytest.mark.parametrize("rule", LIMITED, ids=lambda rule: rule.name)
@given(past=st.lists(NUMBERS, min_size=30, max_size=40), value=NUMBERS, more=st.floats(0, 1e6))
def test_what_is_larger_is_no_less_a_spike(rule, past, value, more):
    assert rule.is_beyond(value + more, past) or not rule.is_beyond(value, past)


@pytest.mark.parametrize("rule", [Median(), Mean(), Max()], ids=lambda rule: rule.name)
@given(past=st.lists(st.floats(0.01, 100), min_size=20, max_size=40), value=st.floats(0.01, 1e4))
def test_the_unit_of_a_loss_does_not_matter(rule, past, value):
    assert rule.is_beyond(value, past) == rule.is_beyond(4 * value, [4 * x for x in past])


def test_a_constant_is_no_spike_and_a_step_up_becomes_usual():
    assert steps_of([2.0] * 50) == []
    assert steps_of([2.0] * 50 + [5.0] * 200) == [50]
    assert steps_of([2.0] * 50 + [5.0] * 100 + [12.0]) == [50, 150]


def test_nan_and_infinities_are_told_at_once_and_forgotten():
    values = [math.nan, *[1.0] * 30, math.inf, 1.0, *[1.0] * 30, -math.inf]
    assert steps_of(values) == [0, 31, 63]
    assert steps_of([1.0, math.nan, math.nan, math.nan], NonFinite(patience=3)) == [1]
    [spike] = find("loss", enumerate([math.nan] * 9))
    assert (spike.rule, math.isnan(spike.value), math.isnan(spike.usual)) == (
        "nonfinite",
        True,
        True,
    )
    assert steps_of([*[1.0] * 20, math.nan, *[1.0] * 20, 9.0], Median()) == [41]


def test_patience_and_cool_down():
    rule = Median(patience=3, cooldown=10)
    flat = [1.0] * 30
    assert steps_of([*flat, 9, 9, *flat], rule) == []
    [spike] = find("loss", enumerate([*flat, 9, 11, 9, 9, *flat]), rule)
    assert (spike.step, spike.told, spike.value) == (30, 32, 11)
    twice = [*flat, 9, *[1.0] * 5, 9, *[1.0] * 20, 9]
    assert steps_of(twice, Median(cooldown=10)) == [30, 57]
    assert steps_of(twice, Median(cooldown=0)) == [30, 36, 57]


def test_warm_up():
    assert steps_of([1.0] * 5 + [9.0] + [1.0] * 5, Median()) == []
    assert steps_of([1.0] * 5 + [9.0] + [1.0] * 5, Median(warmup=5)) == [5]
    assert steps_of([9.0], Absolute(limit=3)) == [0]


def test_steps_that_come_again_are_taken_as_they_come():
    before = [(i, 1.0) for i in range(40)] + [(40, 9.0)]
    again = [(i, 1.0) for i in range(30, 60)] + [(60, 9.0)]
    assert [s.step for s in find("loss", before + again, Median())] == [40, 60]
    detector = Detector(Median(), "loss")
    for step, value in before + again[:5]:
        detector.see(step, value)
    assert [step for step, _ in detector.past] == list(range(35))


def test_zclip_is_the_running_mean_and_deviation_of_its_paper():
    values = np.exp(0.2 * np.random.default_rng(0).standard_normal(120))
    mean, variance = values[:25].mean(), values[:25].var()
    for x in values[25:]:
        mean = 0.97 * mean + 0.03 * x
        variance = 0.97 * variance + 0.03 * (x - mean) ** 2
    assert ZClip().bound([*values]) == pytest.approx(mean + 2.5 * variance**0.5, rel=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_every_rule_can_be_written_down(name):
    more = "limit=5," if name == "absolute" else ""
    rule = parse_rule(f"{name}:{more}window=40,patience=2,cooldown=3")
    assert (rule.name, rule.window, rule.patience, rule.cooldown) == (name, 40, 2, 3)
    assert rule.doc


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("medain", UnknownNameError, "did you mean 'median'"),
        ("median:limt=3", UsageError, "unknown field 'limt'; did you mean 'limit'"),
        ("median:limit", UsageError, "'limit' has no value; expected limit=NUMBER"),
        ("median:limit=-1", UsageError, "limit is '-1': input should be greater than 0"),
        ("mean:limit=1,window=0", UsageError, "limit is '1': .*; window is '0': "),
        ("absolute", UsageError, "limit is missing"),
    ],
)
def test_rules_that_are_wrong(text, error, words):
    with pytest.raises(error, match=words):
        parse_rule(text)
