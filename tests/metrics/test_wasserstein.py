"""The exact Wasserstein distance against scipy and POT, and the laws of a metric."""

import itertools
import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, wasserstein_distance

from roundoff import wasserstein
from roundoff.errors import UsageError
from roundoff.metrics import wasserstein_bins, wasserstein_counts, wasserstein_parts
from roundoff.metrics.wasserstein import sorted_distance
from roundoff.metrics.wasserstein_bins import Bins, bytes_held
from roundoff.metrics.wasserstein_counts import COUNTED, CodeCounts, counted_distance
from roundoff.metrics.wasserstein_parts import PartCounts, parted_distance

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
# Enough for the counts of parts, and for parts that are gone through whole.
SIZES = [(1, 1), (5, 5), (7, 3), (100_000, 100_000), (150_000, 70_001), (3, 200_000)]


def sample(n, seed, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dtype=torch.float64, generator=generator) * scale + shift


def parted(a, b, **options):
    return parted_distance(lambda: [(a, b)], **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m"), SIZES)
def test_against_scipy_and_pot(dtype, n, m):
    a, b = sample(n, 0).to(dtype), sample(m, 1, 1.01, 0.003).to(dtype)
    x, y = a.double().numpy(), b.double().numpy()
    found = wasserstein(a, b)
    assert found == pytest.approx(wasserstein_distance(x, y), rel=1e-10)
    if n == m or n < 100 > m:  # POT adds up weights, which of many unequal ones loses ten digits
        assert found == pytest.approx(ot.wasserstein_1d(x, y), rel=1e-10)
    if dtype is torch.float32:
        assert parted(a, b) == pytest.approx(sorted_distance(a, b), rel=1e-13)
    if dtype in COUNTED:
        assert found == pytest.approx(sorted_distance(a.float(), b.float()), rel=1e-13)


def test_weights_that_hardly_differ():
    a = sample(400_000, 0, 0.02).float()
    b = (a + 1e-6 * sample(400_000, 1)).float()
    expected = wasserstein_distance(a.double().numpy(), b.double().numpy())
    assert parted(a, b) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("p", [1.5, 2, 3])
def test_other_powers_against_pot(p):
    a, b = sample(1000, 0), sample(1000, 1, 2.0)
    expected = ot.wasserstein_1d(a.numpy(), b.numpy(), p=p) ** (1 / p)  # POT gives W to the p
    assert wasserstein(a, b, p=p) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    ("dtype", "other"),
    [
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.bfloat16),
        (torch.float64, torch.float16),
        (torch.int8, torch.float32),
        (torch.bool, torch.uint8),
        (torch.int64, torch.int64),
        (torch.float8_e4m3fn, torch.float8_e5m2),
    ],
)
def test_two_dtypes(dtype, other):
    a, b = (10 * sample(3000, 0).abs()).to(dtype), (9 * sample(2000, 1).abs()).to(other)
    expected = wasserstein_distance(a.double().numpy(), b.double().numpy())
    assert wasserstein(a, b) == pytest.approx(expected, rel=1e-10)


# Every bit pattern of finite floats, so also subnormals, -0 and the largest.
finite32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
lists = st.lists(finite32, min_size=1, max_size=40)


def tensor(values):
    return torch.tensor(values, dtype=torch.float32)


@settings(deadline=None, max_examples=60)
@given(lists, lists)
def test_parts_are_the_sort(x, y):
    a, b = tensor(x), tensor(y)
    expected = sorted_distance(a, b)
    assert parted(a, b) == pytest.approx(expected, rel=1e-13)
    assert parted(a, b, limit=3) == pytest.approx(expected, rel=1e-13)


@settings(deadline=None, max_examples=60)
@given(lists, lists, st.sampled_from([torch.bfloat16, torch.float16]))
def test_counts_are_the_sort(x, y, dtype):
    a, b = (tensor(v).clamp(-6e4, 6e4).to(dtype) for v in (x, y))
    found = counted_distance(CodeCounts.of(a), CodeCounts.of(b))
    assert found == pytest.approx(sorted_distance(a.float(), b.float()), rel=1e-13)


@settings(deadline=None, max_examples=60)
@given(lists, lists, lists)
def test_laws_of_a_metric(x, y, z):
    a, b, c = tensor(x), tensor(y), tensor(z)
    ab = wasserstein(a, b)
    assert wasserstein(a, a) == 0
    assert wasserstein(a, a.flip(0)) == 0
    assert ab == wasserstein(b, a) >= 0
    assert wasserstein(a, c) <= (ab + wasserstein(b, c)) * (1 + 1e-12)


whole = st.lists(st.integers(-1000, 1000), min_size=1, max_size=30)


@settings(deadline=None, max_examples=60)
@given(whole, whole, st.integers(-64, 64))
def test_translation_and_scale(x, y, shift):
    a, b = tensor(x), tensor(y)
    assert wasserstein(a, a + shift) == abs(shift)
    assert wasserstein(a + shift, b + shift) == pytest.approx(wasserstein(a, b), rel=1e-13)
    assert wasserstein(4 * a, 4 * b) == pytest.approx(4 * wasserstein(a, b), rel=1e-13)


@settings(deadline=None, max_examples=60)
@given(lists, lists, st.integers(0, 40))
def test_shards_merge(x, y, cut):
    a, b = tensor(x).bfloat16(), tensor(y).bfloat16()
    shards = [CodeCounts.of(part) for part in (a[:cut], a[cut:])]
    assert counted_distance(shards[0].merge(shards[1]), CodeCounts.of(b)) == wasserstein(a, b)
    parts = PartCounts()
    split = [(a[:cut].float(), b.float()), (a[cut:].float(), b[:0].float())]
    for block in split:
        parts.add(*block)
    found = parted_distance(lambda: split, parts)
    assert found == pytest.approx(wasserstein(a, b), rel=1e-13)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(-(2**15), 2**15 - 1), max_size=200))
def test_the_compiled_count_is_the_readable_one(bits):
    given_bits = torch.tensor(bits, dtype=torch.int16)
    ours = wasserstein_counts.tally(given_bits)
    assert (ours == wasserstein_counts.tally_by_torch(given_bits)).all()
    assert ours.sum() == len(bits)


@pytest.mark.parametrize("dtype", COUNTED)
def test_values_of_codes_are_torch_s(dtype):
    values = wasserstein_counts.values_of_codes(dtype)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).double()
    finite = every[every.isfinite()].sort().values.numpy()
    assert (values[np.isfinite(values)] == finite).all()
    assert (np.sort(values)[: np.isfinite(values).sum() + 2] == values[~np.isnan(values)]).all()


MANY = 200_000
inf, nan = math.inf, math.nan


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("times", [1, MANY])
@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([1, nan], [1, nan], nan),
        ([1, -nan], [1, 2], nan),
        ([1, 2], [nan, 2], nan),
        ([1, inf], [3, inf], 1),
        ([1, -inf], [3, -inf], 1),
        ([-inf, inf], [inf, -inf], 0),
        ([1, inf], [1, 1], inf),
        ([1, -inf], [1, inf], inf),
        ([-inf, -inf], [-inf, 0], inf),
        ([0.0, -0.0], [-0.0, -0.0], 0),
        ([1, 1, inf, inf], [3, inf], 1),
        ([1, inf, inf], [3, inf], inf),
    ],
)
def test_special_values(dtype, times, x, y, expected):
    a, b = (torch.tensor(v, dtype=torch.float64).repeat(times).to(dtype) for v in (x, y))
    assert wasserstein(a, b) == pytest.approx(expected, nan_ok=True)
    if dtype is torch.float32:
        assert parted(a, b) == pytest.approx(expected, nan_ok=True)
        assert parted(a, b, limit=1) == pytest.approx(expected, nan_ok=True)
        assert sorted_distance(a, b) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_on_a_side(dtype):
    nothing, something = torch.zeros(0, dtype=dtype), torch.zeros(2, dtype=dtype)
    assert math.isnan(wasserstein(nothing, something))
    assert math.isnan(wasserstein(something, nothing))
    assert math.isnan(wasserstein(nothing, nothing))


def test_the_largest_numbers():
    big = torch.finfo(torch.float32).max
    a, b = torch.full((MANY,), big), torch.full((MANY,), -big)
    assert wasserstein(a, b) == 2 * big
    tiny = torch.full((MANY,), 2.0**-149)
    assert wasserstein(tiny, -tiny) == 2.0**-148


@pytest.mark.parametrize(("n", "limit"), [(30, 1), (30_000, 1000), (30_000, 50_000)])
def test_passes_do_not_change_the_distance(n, limit):
    a, b = sample(2 * n, 0).float(), sample(2 * n, 1).float()
    blocks = [(a[:n], b[:1]), (a[n:], b[1:n]), (a[:0], b[n:])]
    found = parted_distance(lambda: blocks, limit=limit)
    assert found == pytest.approx(sorted_distance(a, b), rel=1e-13)
    counts = PartCounts()
    counts.add(a, b)
    runs = list(wasserstein_parts.passes(counts, limit))
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(runs))
    held = [counts.counts[:, slice(*run)].sum() for run in runs]
    assert sum(held) == 4 * n
    taken = bytes_held(counts.counts.sum(0), 4 * n, limit)
    assert all(taken[slice(*run)].sum() <= limit or run[1] - run[0] == 1 for run in runs)


@pytest.mark.parametrize("narrow", [1 << 31, 0])
@pytest.mark.parametrize(("n", "m"), [(900_000, 900_000), (900_000, 600_001)])
def test_parts_of_many_numbers_are_counted(monkeypatch, narrow, n, m):
    """In each of three parts: many codes, and few of them that occur often."""
    monkeypatch.setattr(wasserstein_bins, "NARROW", narrow)
    generator = torch.Generator().manual_seed(0)
    a, b = (1 + torch.rand(size, generator=generator) * 3 / 128 for size in (n, m))
    a[: n // 2], b[: m // 2] = 1.001, 1.002
    counts, limit = PartCounts(), 400_000
    counts.add(a, b)
    held = counts.counts[:, wasserstein_parts.PARTS // 2 :]
    assert (Bins(held, n, limit).slots >= 0).sum() == 3
    found = parted(a, b, limit=limit)
    expected = wasserstein_distance(a.double().numpy(), b.double().numpy())
    assert found == pytest.approx(expected, rel=1e-10)
    assert found == pytest.approx(sorted_distance(a, b), rel=1e-13)


@pytest.mark.parametrize(
    ("numbers", "scales", "passes"),
    [
        (1 << 30, (0.02,), 1),
        (1 << 30, (0.02, 0.04, 0.08), 1),
        (1 << 30, (0.001, 0.003, 0.01, 0.03, 0.1, 1.0), 2),
        (1 << 34, (0.001, 0.003, 0.01, 0.03, 0.1, 1.0), 4),
    ],
)
def test_normal_weights_take_few_passes(numbers, scales, passes):
    """Counts that normal weights would have, so many a side, in layers of these scales."""
    borders = np.arange(0, 0x7F80 << 16, 1 << 16, dtype=np.uint32).view(np.float32)
    above = np.mean([norm.sf(borders.astype(np.float64), scale=scale) for scale in scales], 0)
    positive = np.zeros(wasserstein_parts.PARTS // 2)
    positive[: borders.size] = -np.diff(above, append=0.0) * numbers
    counts = PartCounts()
    counts.counts[:] = np.concatenate([positive[::-1], positive]).round()
    assert len(list(wasserstein_parts.passes(counts))) == passes


def test_without_numba_it_sorts(monkeypatch):
    a, b = sample(100_000, 0).float(), sample(100_000, 1).float()
    fast = wasserstein(a, b)
    monkeypatch.setattr(wasserstein_parts, "is_installed", lambda name: False)
    monkeypatch.setattr(wasserstein_counts, "is_installed", lambda name: False)
    assert wasserstein(a, b) == pytest.approx(fast, rel=1e-13)
    assert wasserstein(a.bfloat16(), b.bfloat16()) > 0


@pytest.mark.parametrize(
    ("a", "b", "p", "message"),
    [
        (torch.zeros(2, dtype=torch.complex64), torch.zeros(2), 1, "no order"),
        (torch.zeros(2), torch.zeros(2), 0.5, "p of at least 1"),
        (torch.zeros(2), torch.zeros(2), inf, "finite p"),
        (torch.zeros(2), torch.zeros(2), nan, "finite p"),
        (torch.zeros(2), torch.zeros(3), 2, "equal sizes"),
        (torch.zeros(2), torch.zeros(2, device="meta"), 1, "devices differ"),
    ],
)
def test_what_is_refused(a, b, p, message):
    with pytest.raises(UsageError, match=message) as caught:
        wasserstein(a, b, p=p)
    assert "\n" not in str(caught.value)


def test_inputs_stay_as_they_are():
    a = sample(MANY, 0).float().reshape(2, -1).T
    before = a.clone()
    assert wasserstein(a, a.contiguous()) == 0
    assert torch.equal(a, before)


def test_counts_of_two_dtypes_do_not_merge():
    half = CodeCounts.of(torch.zeros(1, dtype=torch.float16))
    with pytest.raises(UsageError, match="two dtypes"):
        half.merge(CodeCounts.of(torch.zeros(1, dtype=torch.bfloat16)))
    with pytest.raises(UsageError, match="no 16-bit code"):
        CodeCounts.of(torch.zeros(1))
