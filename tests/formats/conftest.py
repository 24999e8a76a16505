"""The oracles of rounding, and the inputs on which they are asked.

`exact` knows nothing of bits: it looks a value up in the sorted list of a format's numbers.
"""

from functools import cache
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
import torch

from roundoff.formats import _torch, get_format, rounding

ML_DTYPES = {
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e4m3": ml_dtypes.float8_e4m3,
    "e3m4": ml_dtypes.float8_e3m4,
    "e4m3b11fnuz": ml_dtypes.float8_e4m3b11fnuz,
}

DTYPES = {"float32": np.float32, "float64": np.float64}


@pytest.fixture(params=["torch", "numba"])
def twin(request, monkeypatch):
    """Run the test once with each twin."""
    if request.param == "torch":
        chosen = _torch.round_into
    else:
        pytest.importorskip("numba")
        from roundoff.formats._numba import round_into as chosen
    monkeypatch.setattr(rounding, "_fast", [chosen])
    return request.param


@pytest.fixture(scope="session")
def oracle():
    """What must come out, where to ask, and when two answers are one."""
    return SimpleNamespace(exact=_exact, probes=_probes, same=_same)


def _same(a, b):
    """Equal bits, where all NaN count as one."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype
    both = np.isnan(a) & np.isnan(b)
    return both | (a.view(f"i{a.itemsize}") == b.view(f"i{b.itemsize}"))


@cache
def _numbers(name):
    """A format's finite numbers from 0 up, and the next one were there more exponents."""
    format = get_format(name)
    half = np.array(format.values()[: format.codes // 2])
    numbers = half[np.isfinite(half)]
    assert (np.diff(numbers) > 0).all()
    return np.append(numbers, format.max + 2.0 ** (format.emax - format.mantissa_bits))


@cache
def _probes(name, dtype, random=100_000):
    """Every number, every midpoint with its neighbours in `dtype`, random bits, specials."""
    kind = DTYPES[dtype]
    rng = np.random.default_rng(1)
    integer = np.dtype(kind).itemsize
    drawn = rng.integers(0, 256, random * integer, dtype=np.uint8).view(kind)
    special = np.array([0.0, np.inf, np.nan, np.finfo(kind).max, np.finfo(kind).tiny])
    parts = [special, np.array([np.finfo(kind).smallest_subnormal]), np.abs(drawn)]
    with np.errstate(over="ignore", under="ignore"):
        if get_format(name).bits <= 20:
            numbers = _numbers(name)
            if len(numbers) > 1 << 16:  # tf32: both ends, and some between
                some = rng.integers(3000, len(numbers) - 3000, 50_000)
                numbers = np.concatenate([numbers[:3000], numbers[-3000:], numbers[np.sort(some)]])
            middles = ((numbers[:-1] + numbers[1:]) / 2).astype(kind)
            parts += [numbers, np.nextafter(numbers.astype(kind), kind(0)), middles]
            parts += [np.nextafter(middles, kind(0)), np.nextafter(middles, kind(np.inf))]
        x = np.concatenate([part.astype(kind) for part in parts])
    return np.concatenate([x, -x])


def _exact(name, mode, overflow, dtype, random=100_000):
    """The rounded probes of a format with at most 20 bits."""
    format, x, numbers = get_format(name), _probes(name, dtype, random), _numbers(name)
    negative = np.signbit(x)
    magnitude = np.where(np.isnan(x), 0, np.abs(x)).astype(np.float64)
    clipped = np.minimum(magnitude, numbers[-1])
    low = np.searchsorted(numbers, clipped, side="right") - 1
    high = np.minimum(low + 1, len(numbers) - 1)
    middle = (numbers[low] + numbers[high]) / 2
    between = clipped > numbers[low]
    away = {
        "nearest": (clipped > middle) | ((clipped == middle) & (low % 2 == 1)),
        "nearest-away": clipped >= middle,
        "toward-zero": np.zeros_like(negative),
        "up": ~negative,
        "down": negative,
    }[mode]
    r = np.where(away & between, numbers[high], numbers[low])
    lost = format.max if overflow == "saturate" or not format.nans else np.nan
    if format.infinities and overflow == "inf":
        lost = np.inf
    stays = {"toward-zero": np.ones_like(negative), "up": negative, "down": ~negative}
    finite = np.where(stays.get(mode, np.zeros_like(negative)), format.max, lost)
    r = np.where(r > format.max, finite, r)
    r = np.where(np.isinf(x), lost, r)
    r = np.where(np.isnan(x), np.nan, r)
    if not format.negative_zero:
        negative = negative & (r != 0)
    return np.where(negative, -r, r).astype(DTYPES[dtype])


@pytest.fixture(autouse=True)
def _one_thread():
    # Threads that wait for each other crawl when another process has the cores.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
