import math
import subprocess
import sys

import gfloat
import numpy as np
import pytest
import torch
from gfloat import formats as gf

from roundoff.errors import UnknownNameError, UsageError
from roundoff.formats import FORMATS, Format, get_format

from .conftest import ML_DTYPES

SMALL = [name for name, format in FORMATS.items() if format.bits <= 19]

GFLOAT = {
    "fp64": gf.format_info_binary64,
    "fp32": gf.format_info_binary32,
    "bf16": gf.format_info_bfloat16,
    "fp16": gf.format_info_binary16,
    "e4m3fn": gf.format_info_ocp_e4m3,
    "e5m2": gf.format_info_ocp_e5m2,
    "e2m3": gf.format_info_ocp_e2m3,
    "e3m2": gf.format_info_ocp_e3m2,
    "e2m1": gf.format_info_ocp_e2m1,
}


@pytest.mark.parametrize("name", SMALL)
def test_the_numbers_follow_from_the_codes(name):
    format = FORMATS[name]
    values = np.array(format.values())
    finite = np.unique(values[np.isfinite(values)])
    positive = finite[finite > 0]
    assert len(values) == format.codes == 2**format.bits
    assert format.max == positive[-1]
    assert format.smallest_subnormal == positive[0]
    assert format.smallest_normal == 2.0**format.emin
    assert 2.0**format.emax <= format.max < 2.0 ** (format.emax + 1)
    assert format.eps == finite[np.searchsorted(finite, 1.0) + 1] - 1.0
    assert format.unit_roundoff == format.eps / 2
    assert format.nans == bool(np.isnan(values).any())
    assert format.infinities == bool(np.isinf(values).any())
    zeros = np.signbit(values[values == 0])
    assert format.negative_zero == bool(zeros.any())


@pytest.mark.parametrize("name", GFLOAT)
def test_gfloat_has_the_same_numbers(name):
    theirs, ours = GFLOAT[name], get_format(name)
    assert (ours.bits, ours.max, ours.eps) == (theirs.k, theirs.max, theirs.eps)
    assert ours.smallest_subnormal == theirs.smallest_subnormal
    assert ours.smallest_normal == theirs.smallest_normal
    if ours.bits <= 8:
        decoded = [gfloat.decode_float(theirs, code).fval for code in range(ours.codes)]
        np.testing.assert_array_equal(ours.values(), decoded)


@pytest.mark.parametrize("name", ML_DTYPES)
def test_ml_dtypes_has_the_same_codes(name):
    dtype, ours = np.dtype(ML_DTYPES[name]), get_format(name)
    codes = np.arange(ours.codes, dtype=f"u{dtype.itemsize}")
    with np.errstate(invalid="ignore"):
        theirs = codes.view(dtype).astype(np.float64)
    values = np.array(ours.values())
    np.testing.assert_array_equal(values, theirs)
    real = ~np.isnan(values)
    np.testing.assert_array_equal(np.signbit(values[real]), np.signbit(theirs[real]))


@pytest.mark.parametrize("name", FORMATS)
def test_torch_has_the_same_limits(name):
    format = FORMATS[name]
    if format.dtype is None:
        pytest.skip("torch has no such dtype")
    info = torch.finfo(format.dtype)
    assert (format.bits, format.max) == (info.bits, info.max)
    if name != "e5m2fnuz":  # torch says 0.125; its own next number after 1 is 1.25
        assert format.eps == info.eps
    assert format.smallest_normal == info.smallest_normal


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_a_value(name):
    format = FORMATS[name]
    copy = Format(name, format.exponent_bits, format.mantissa_bits, format.bias, format.specials)
    assert copy == format
    assert hash(copy) == hash(format)
    assert get_format(name) is get_format(format) is format


def test_dtype_goes_by_the_numbers_not_by_the_name():
    assert get_format("e8m7").dtype is torch.bfloat16
    assert get_format("e4m3").dtype is None


@pytest.mark.parametrize(
    ("name", "limit"),
    [("e5m7", 65280.0), ("e4m3", 240.0), ("e4m3b9", 60.0), ("e5m2fn", 98304.0), ("e5m10", 65504.0)],
)
def test_a_spelled_format(name, limit):
    assert get_format(name).max == limit


@pytest.mark.parametrize("name", ["bf15", "", "e5", "m3", "e4m3fnu", "e-1m3", "E4M3", "e4m3b"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(UnknownNameError, match="unknown format"):
        get_format(name)


@pytest.mark.parametrize(
    "name", ["e0m3", "e0m3fnuz", "e1m3", "e5m0", "e12m3", "e11m53", "e11m52fn", "e11m4b1100"]
)
def test_an_impossible_format_is_refused(name):
    with pytest.raises(UsageError, match=rf"format '{name}'") as raised:
        get_format(name)
    assert "\n" not in str(raised.value)
    assert not isinstance(raised.value, UnknownNameError)


def test_wrong_arguments_are_refused():
    with pytest.raises(UsageError, match="specials"):
        Format("x", 4, 3, 7, "inf")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="name or a Format"):
        get_format(torch.bfloat16)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"not in 0\.\.15"):
        FORMATS["e2m1"].value(16)
    with pytest.raises(UsageError, match="codes"):
        FORMATS["fp32"].values()


def test_fp32_and_fp64_values_come_from_their_codes():
    assert FORMATS["fp32"].value(0x3F800001) == 1.0 + 2.0**-23
    assert FORMATS["fp64"].value(1) == 5e-324
    assert math.isnan(FORMATS["fp64"].value(0x7FF8 << 48))


def test_formats_cost_no_torch():
    code = "import sys, roundoff.formats as f; f.FORMATS['bf16'].max; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_public_names_are_sorted_and_exist():
    import roundoff.formats as room

    assert room.__all__ == sorted(room.__all__)
    assert all(hasattr(room, name) for name in room.__all__)
    assert not hasattr(room, "nothing")
