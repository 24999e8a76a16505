import math

import numpy as np
import pytest
import torch

from roundoff.errors import UnsupportedError, UsageError
from roundoff.formats import FORMATS, get_format, is_representable, round_to, to_dtype, ulp

SMALL = [name for name, format in FORMATS.items() if format.bits <= 16]


@pytest.mark.parametrize("name", SMALL)
def test_ulp_is_the_gap_to_the_next_number(name):
    format = FORMATS[name]
    values = np.array(format.values()[: format.codes // 2])
    values = values[np.isfinite(values)]
    gaps = torch.from_numpy(np.diff(values))
    low = torch.from_numpy(values[:-1])
    for x in (low, -low, low + gaps / 2, low + gaps * 0.99):
        assert torch.equal(ulp(x, name), gaps)


@pytest.mark.parametrize("name", FORMATS)
def test_ulp_of_special_values(name):
    format = FORMATS[name]
    top = 2.0 ** (format.emax - format.mantissa_bits)
    x = torch.tensor([0.0, -0.0, format.max, math.inf, -math.inf, math.nan], dtype=torch.float64)
    tiny = format.smallest_subnormal
    assert ulp(x, name)[:3].tolist() == [tiny, tiny, top]
    assert ulp(x, name)[3:].isnan().all()
    if format.emax < 1000:
        beyond = torch.tensor([format.max * 64], dtype=torch.float64)
        assert ulp(beyond, name).item() == top


def test_ulp_in_float64_is_pythons():
    x = torch.randint(0, 0x7FEF << 48, (2000,), generator=torch.Generator().manual_seed(0))
    x = x.view(torch.float64)
    assert ulp(x, "fp64").tolist() == [math.ulp(v) for v in x.tolist()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e5m2])
def test_ulp_takes_any_floating_dtype(dtype):
    assert ulp(torch.ones(2).to(dtype), "bf16").tolist() == [2.0**-7] * 2
    with pytest.raises(UsageError, match="floating"):
        ulp(torch.ones(2, dtype=torch.int32), "bf16")


def test_flushed_subnormals_are_still_seen():
    x = torch.tensor([1e-40, -1e-40, 0.0, -0.0, 1.0])
    want = [math.ulp(v) for v in x.double().tolist()]
    known = is_representable(x, "bf16").tolist()
    try:
        torch.set_flush_denormal(True)
        found, again = ulp(x, "fp64"), is_representable(x, "bf16").tolist()
    finally:
        torch.set_flush_denormal(False)
    assert found.tolist() == want
    assert known == again == [False, False, True, True, True]


@pytest.mark.parametrize("name", SMALL)
def test_exactly_the_numbers_of_a_format_are_representable(name):
    format = FORMATS[name]
    values = torch.tensor(format.values(), dtype=torch.float64)
    assert is_representable(values, name).all()
    between = values[values.isfinite()] + ulp(values[values.isfinite()], name) / 4
    assert not is_representable(between, name).any()
    special = torch.tensor([math.nan, math.inf, -math.inf, -0.0])
    has = [format.nans, format.infinities, format.infinities, format.negative_zero]
    assert is_representable(special, name).tolist() == has


@pytest.mark.parametrize("name", FORMATS)
def test_to_dtype_keeps_every_value(name):
    format = FORMATS[name]
    x = round_to(torch.randn(1000, dtype=torch.float64) * 3, format, overflow="saturate")
    if format.dtype is None:
        with pytest.raises(UnsupportedError, match="no dtype"):
            to_dtype(x, name)
        return
    cast = to_dtype(x, name)
    assert cast.dtype is format.dtype
    assert torch.equal(cast.to(torch.float64), x)


def test_to_dtype_refuses_to_round():
    with pytest.raises(UsageError, match=r"1\.1.* is not a number of bf16"):
        to_dtype(torch.tensor([1.0, 1.1]), "bf16")
    assert to_dtype(torch.empty(0), get_format("bf16")).dtype is torch.bfloat16
