"""Distances of weights: against the plain definitions, numpy, and the readable twin."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roundoff import metrics
from roundoff.errors import UsageError
from roundoff.metrics.weights import WeightDistance, gathered, gathered_by_torch

FLOATS = [
    torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn,
    torch.float8_e5m2,
]  # fmt: skip


def pair(dtype, n=200_003, other=None):
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(n, generator=generator, dtype=torch.float64)
    b = a * (1 + 0.05 * torch.randn(n, generator=generator, dtype=torch.float64))
    b[::97] = -b[::97]
    a[5], b[7], b[9] = 0, -0.0, 0
    return a.to(dtype), b.to(other or dtype)


def alike(found, expected, rel=1e-12):
    for field in dataclasses.fields(WeightDistance):
        x, y = getattr(found, field.name), getattr(expected, field.name)
        assert x == pytest.approx(y, rel=rel, nan_ok=True), field.name


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_compiled_loop_is_the_readable_one(dtype):
    a, b = pair(dtype)
    found = gathered(a, b)
    alike(found, gathered_by_torch(a, b))
    for name in (f.name for f in dataclasses.fields(found) if f.type == "int"):
        assert getattr(found, name) == getattr(gathered_by_torch(a, b), name)


@pytest.mark.parametrize("dtype", FLOATS)
def test_against_the_plain_definitions(dtype):
    a, b = pair(dtype)
    found, x, y = gathered(a, b), a.double(), b.double()
    assert found.max_diff == metrics.max_abs_err(x, y)
    assert found.rel_l2 == pytest.approx(metrics.rel_l2(x, y), rel=1e-12)
    assert found.rel_l1 == pytest.approx(metrics.rel_l1(x, y), rel=1e-12)
    assert found.cosine == pytest.approx(metrics.cosine(x, y), rel=1e-12)
    assert found.sign_flips == int((x * y < 0).sum()) > 0
    assert found.differing == round(metrics.mismatch_rate(x, y) * len(x))


def test_steps_are_numpy_s():
    a, b = pair(torch.float32, 1000)
    walked = [0] * 20
    for i in range(20):
        x, target = a[i].numpy(), np.nextafter(a[i].numpy(), np.float32(b[i]))
        b[i] = float(np.nextafter(target, np.float32(np.inf if target > x else -np.inf)))
        walked[i] = 2
    found = gathered(a[:20], b[:20])
    assert found.ulp_max == 2
    assert found.ulp_mean == pytest.approx(sum(walked) / 20)


@pytest.mark.parametrize("dtype", FLOATS[:4])
def test_steps_cross_zero(dtype):
    tiny = torch.tensor([torch.finfo(dtype).smallest_normal], dtype=dtype)
    count = 1 / torch.finfo(dtype).eps  # subnormals and zero lie between
    assert gathered(-tiny, tiny).ulp_max == 2 * count
    assert gathered(-0.0 * tiny, 0.0 * tiny).ulp_max == 0
    big = torch.tensor([torch.finfo(dtype).max], dtype=dtype)
    assert gathered(-big, big).ulp_max == gathered_by_torch(-big, big).ulp_max > count


@pytest.mark.parametrize(
    ("dtype", "other"),
    [
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float16),
        (torch.float64, torch.float32),
        (torch.float32, torch.int8),
    ],
)
def test_two_dtypes_meet_in_float64(dtype, other):
    a, b = pair(dtype, other=other)
    found = gathered(a, b)
    assert math.isnan(found.ulp_mean)
    assert found.max_diff == metrics.max_abs_err(a, b)
    assert found.rel_l2 == pytest.approx(metrics.rel_l2(a, b), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool])
def test_whole_numbers(dtype):
    a = torch.tensor([0, 1, 1, 0, 1]).to(dtype)
    b = torch.tensor([0, 1, 0, 1, 1]).to(dtype)
    found = gathered(a, b)
    assert (found.differing, found.max_diff, found.ulp_mean) == (2, 1.0, 0.4)


def test_large_whole_numbers_are_compared_before_they_are_rounded():
    a = torch.tensor([2**60, 2**62, -(2**62)])
    found = gathered(a, a + 1)
    assert (found.differing, found.max_diff) == (3, 1.0)


def test_special_values():
    inf, nan = math.inf, math.nan
    both = gathered(torch.tensor([1.0, inf, -inf]), torch.tensor([2.0, inf, -inf]))
    assert (both.max_diff, both.differing, both.nonfinite_a, both.ulp_max) == (1, 1, 2, 2**23)
    one = gathered(torch.tensor([1.0, 2.0]), torch.tensor([1.0, inf]))
    assert (one.max_diff, one.rel_l2, one.nonfinite_b, one.ulp_max) == (inf, inf, 1, inf)
    missing = gathered(torch.tensor([1.0, nan]), torch.tensor([1.0, nan]))
    assert math.isnan(missing.max_diff)
    assert math.isnan(missing.ulp_mean)
    assert (missing.differing, missing.nonfinite_a) == (0, 1)
    nothing = gathered(torch.zeros(0), torch.zeros(0))
    assert all(math.isnan(v) for v in (nothing.max_diff, nothing.rel_l2, nothing.ulp_mean))
    assert nothing.differing == 0
    zero = gathered(torch.zeros(2), torch.ones(2))
    assert zero.rel_l2 == inf
    assert math.isnan(zero.cosine)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_bad_number_among_many(value):
    a, b = pair(torch.float32)
    b[100_000] = value
    found = gathered(a, b)
    assert found.max_diff == pytest.approx(value, nan_ok=True)
    assert found.nonfinite_b == 1


shards = st.lists(st.lists(st.floats(-1e6, 1e6, width=32), max_size=20), min_size=1, max_size=4)


@settings(deadline=None, max_examples=50)
@given(shards, st.randoms(use_true_random=False))
def test_shards_merge(parts, random):
    a = [torch.tensor(p, dtype=torch.float32) for p in parts]
    b = [x * random.choice([0.5, 1.0, -2.0]) for x in a]
    merged = WeightDistance()
    for x, y in zip(a, b, strict=True):
        merged = merged.merge(gathered(x, y))
    alike(merged, gathered(torch.cat(a), torch.cat(b)), rel=1e-11)


@settings(deadline=None, max_examples=50)
@given(shards)
def test_identity_and_symmetry(parts):
    flat = [value for part in parts for value in part]
    a, b = torch.tensor(flat), torch.tensor(flat[::-1])
    same, there, back = gathered(a, a), gathered(a, b), gathered(b, a)
    assert same.differing == same.ee == same.steps == 0
    assert there.max_diff == pytest.approx(back.max_diff, nan_ok=True)
    assert (there.steps, there.sign_flips, there.differing) == (
        back.steps, back.sign_flips, back.differing
    )  # fmt: skip


def test_without_numba(monkeypatch):
    a, b = pair(torch.float32, 3000)
    fast = gathered(a, b)
    monkeypatch.setattr("roundoff.metrics.weights.is_installed", lambda name: False)
    alike(gathered(a, b), fast)


def test_what_is_refused():
    with pytest.raises(UsageError, match="shapes differ"):
        gathered(torch.zeros(2), torch.zeros(3))
    with pytest.raises(UsageError, match="complex"):
        gathered(torch.zeros(2, dtype=torch.complex64), torch.zeros(2))
