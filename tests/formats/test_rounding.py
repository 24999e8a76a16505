"""Rounding held to outside oracles, for every format, mode and overflow, and both twins."""

from typing import get_args

import gfloat
import ml_dtypes
import numpy as np
import pytest
import torch

from roundoff.formats import FORMATS, get_format, round_to
from roundoff.formats._plan import FLOAT32, FLOAT64, Mode, make_plan

from .conftest import ML_DTYPES

# A new row of the catalogue gets the whole suite; the spelled ones are corners of the grammar.
SPELLED = ["e4m3", "e3m4", "e4m3b11fnuz", "e5m7", "e1m2fn", "e2m1fn", "e8m1", "e2m1fnuz"]
SMALL = [name for name, format in FORMATS.items() if format.bits <= 20] + SPELLED
EXACT_MODES = [mode for mode in get_args(Mode) if mode != "stochastic"]
OVERFLOWS = ["inf", "saturate"]

GFLOAT_MODES = {
    "nearest": gfloat.RoundMode.TiesToEven,
    "nearest-away": gfloat.RoundMode.TiesToAway,
    "toward-zero": gfloat.RoundMode.TowardZero,
    "up": gfloat.RoundMode.TowardPositive,
    "down": gfloat.RoundMode.TowardNegative,
}


def rounded(x, name, **kw):
    return round_to(torch.from_numpy(x), name, **kw).numpy()


def in_gfloat(format):
    return gfloat.FormatInfo(
        format.name,
        k=format.bits,
        precision=format.mantissa_bits + 1,
        bias=format.bias,
        is_signed=True,
        domain=gfloat.Domain.Extended if format.infinities else gfloat.Domain.Finite,
        has_nz=format.negative_zero,
        num_high_nans={"ieee": 2**format.mantissa_bits - 1, "fn": 1}.get(format.specials, 0),
        has_subnormals=True,
        is_twos_complement=False,
    )


def by_gfloat(x, format, mode, overflow):
    # gfloat refuses an overflow that the format cannot express, where round_to stays at max.
    saturate = overflow == "saturate" or not format.nans
    wide = x.astype(np.float64)
    result = gfloat.round_ndarray(in_gfloat(format), wide, GFLOAT_MODES[mode], sat=saturate)
    return result.astype(x.dtype)


def assert_same(ok, x, ours, theirs):
    assert ok.all(), list(zip(x[~ok][:5], ours[~ok][:5], theirs[~ok][:5], strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("overflow", OVERFLOWS)
@pytest.mark.parametrize("mode", EXACT_MODES)
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.usefixtures("twin")
def test_against_the_list_of_numbers(oracle, name, mode, overflow, dtype):
    x = oracle.probes(name, dtype, 20_000)
    ours = rounded(x, name, mode=mode, overflow=overflow)
    theirs = oracle.exact(name, mode, overflow, dtype, 20_000)
    assert_same(oracle.same(ours, theirs), x, ours, theirs)


@pytest.mark.parametrize("overflow", OVERFLOWS)
@pytest.mark.parametrize("mode", EXACT_MODES)
@pytest.mark.parametrize("name", [*SMALL, "fp32", "fp64"])
def test_against_gfloat(oracle, name, mode, overflow):
    x = oracle.probes(name, "float64", 20_000)[:300_000]
    ours = rounded(x, name, mode=mode, overflow=overflow)
    with np.errstate(all="ignore"):
        theirs = by_gfloat(x, get_format(name), mode, overflow)
    assert_same(oracle.same(ours, theirs), x, ours, theirs)


@pytest.mark.parametrize("name", ML_DTYPES)
def test_a_million_bit_patterns_against_ml_dtypes(twin, oracle, name):
    x = oracle.probes(name, "float32", 500_000)
    format = get_format(name)
    if not format.nans:  # theirs has no NaN to give back
        x = x[~np.isnan(x)]
    ours = rounded(x, name)
    with np.errstate(all="ignore"):
        theirs = x.astype(ML_DTYPES[name]).astype(np.float32)
    assert_same(oracle.same(ours, theirs), x, ours, theirs)


def twins(oracle, name, mode, carrier):
    """What the readable twin gives, and the fast one: into another place, and in place."""
    from roundoff.formats import _torch

    fast = pytest.importorskip("roundoff.formats._numba")
    plan = make_plan(get_format(name), carrier, mode, "inf")
    x = torch.from_numpy(oracle.probes(name, carrier.name, 20_000))[:100_000]
    out, again = torch.empty_like(x), x.clone()
    clear = _torch.rounded(x, plan, -0x123456789ABCDEF)
    fast.round_into(x, out, plan, -0x123456789ABCDEF)
    fast.round_into(again, again, plan, -0x123456789ABCDEF)
    integer = torch.int32 if carrier is FLOAT32 else torch.int64
    return [y.view(integer) for y in (clear, out, again)]


ROUNDED = [
    pytest.param(name, carrier, id=f"{name}-{carrier.name}")
    for name in [*SMALL, "fp32"]
    for carrier in (FLOAT32, FLOAT64)
    if make_plan(get_format(name), carrier, "nearest", "inf")
]


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize(("name", "carrier"), ROUNDED)
def test_the_twins_agree_to_the_last_bit(oracle, name, mode, carrier):
    clear, *fast = twins(oracle, name, mode, carrier)
    assert all(torch.equal(clear, x) for x in fast)


@pytest.mark.parametrize("mode", ["nearest", "stochastic"])
def test_threads_change_nothing(oracle, mode):
    torch.set_num_threads(2)
    try:
        clear, *fast = twins(oracle, "bf16", mode, FLOAT32)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(clear, x) for x in fast)


def test_float64_to_float32_is_what_the_processor_does(twin, oracle):
    x = oracle.probes("fp32", "float64", 300_000)
    x = np.concatenate([x, np.random.default_rng(2).normal(size=100_000)])
    with np.errstate(all="ignore"):
        theirs = x.astype(np.float32).astype(np.float64)
    ours = rounded(x, "fp32")
    assert_same(oracle.same(ours, theirs), x, ours, theirs)


def test_float64_is_rounded_once_where_torch_and_ml_dtypes_round_twice(twin):
    # Just above the midpoint of 1 and 1 + 2**-7. In float32 it *is* the midpoint, and the tie
    # then goes down. So neither cast can be the oracle for float64.
    x = np.array([1 + 2.0**-8 + 2.0**-40])
    assert rounded(x, "bf16").item() == 1 + 2.0**-7
    assert torch.from_numpy(x).to(torch.bfloat16).item() == 1.0
    assert x.astype(ml_dtypes.bfloat16).item() == 1.0


def test_torch_saturates_infinity_in_e4m3fn_where_it_should_be_nan(twin):
    x = np.array([np.inf], dtype=np.float32)
    assert np.isnan(rounded(x, "e4m3fn")).all()
    assert torch.from_numpy(x).to(torch.float8_e4m3fn).float().item() == 448
    assert np.isnan(x.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)).all()


@pytest.mark.parametrize("name", ["fp64", "fp32"])
def test_a_format_that_holds_the_dtype_changes_nothing(twin, oracle, name):
    x = oracle.probes("fp32", "float32", 20_000)
    for mode in EXACT_MODES:
        assert oracle.same(rounded(x, name, mode=mode), x).all()
