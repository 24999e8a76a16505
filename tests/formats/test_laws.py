"""What holds for every rounding, whatever the numbers."""

from typing import get_args

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roundoff.formats import FORMATS, is_representable, round_to, ulp
from roundoff.formats._plan import Mode

EXACT_MODES = [mode for mode in get_args(Mode) if mode != "stochastic"]
NARROW = [name for name in FORMATS if name not in ("fp64", "fp32")]

names = st.sampled_from(NARROW)
modes = st.sampled_from(EXACT_MODES)
overflows = st.sampled_from(["inf", "saturate"])
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
near_one = st.floats(-8, 8, width=32)
arrays = st.lists(finite | near_one, min_size=1, max_size=30).map(
    lambda row: torch.tensor(row, dtype=torch.float64)
)
# The twin is chosen once per test, not per example, which is what is wanted.
check = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

pytestmark = pytest.mark.usefixtures("twin")


@check
@given(arrays, names, modes, overflows)
def test_idempotent(x, name, mode, overflow):
    once = round_to(x, name, mode=mode, overflow=overflow)
    once = once[torch.isfinite(once)]
    assert torch.equal(round_to(once, name, mode=mode, overflow=overflow), once)
    assert is_representable(once, name).all()


@check
@given(arrays, names, modes)
def test_monotone(x, name, mode):
    rounded = round_to(x.sort().values, name, mode=mode, overflow="saturate")
    assert (rounded.diff() >= 0).all()


@check
@given(arrays, names, overflows)
def test_mirrored(x, name, overflow):
    mirror = {"up": "down", "down": "up"}
    for mode in EXACT_MODES:
        here = round_to(x, name, mode=mode, overflow=overflow)
        there = -round_to(-x, name, mode=mirror.get(mode, mode), overflow=overflow)
        assert torch.equal(here.nan_to_num(nan=1e300), there.nan_to_num(nan=1e300))


@check
@given(arrays, names)
def test_distances(x, name):
    x = x.clamp(-FORMATS[name].max, FORMATS[name].max)
    spacing = ulp(x, name)
    for mode in EXACT_MODES:
        error = round_to(x, name, mode=mode) - x
        bound = spacing / 2 if mode.startswith("nearest") else spacing
        assert (error.abs() <= bound).all()
    assert (round_to(x, name, mode="up") >= x).all()
    assert (round_to(x, name, mode="down") <= x).all()
    assert (round_to(x, name, mode="toward-zero").abs() <= x.abs()).all()


@check
@given(arrays, names, st.integers(0, 2**32))
def test_stochastic_gives_a_neighbour(x, name, seed):
    generator = torch.Generator().manual_seed(seed)
    drawn = round_to(x, name, mode="stochastic", overflow="saturate", generator=generator)
    low = round_to(x, name, mode="down", overflow="saturate")
    high = round_to(x, name, mode="up", overflow="saturate")
    assert ((drawn == low) | (drawn == high)).all()
