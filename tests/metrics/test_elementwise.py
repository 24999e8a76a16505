"""The plain definitions against closed forms, numpy and the laws that they obey."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from roundoff import metrics
from roundoff.errors import UsageError
from roundoff.metrics.ulp import TopValues, p99

# Below 1e-60, squares would come near the smallest float64.
values = st.floats(-1e6, 1e6).map(lambda v: v if abs(v) > 1e-60 else 0.0)


@st.composite
def pairs(draw):
    """Golden and measured, of one shape."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=8))
    return tuple(torch.tensor(draw(hnp.arrays(np.float64, shape, elements=values))) for _ in "gx")


SIZES = [metrics.max_abs_err, metrics.mean_abs_err, metrics.rmse]
RELATIVE = [metrics.rel_l2, metrics.rel_l1]


def close(value, metric=None):
    # Terms of both signs cancel in a cosine, and a logarithm near 1 loses leading digits.
    absolute = {metrics.cosine: 1e-14, metrics.sqnr_db: 1e-9}.get(metric, 0.0)
    return pytest.approx(value, rel=1e-11, abs=absolute, nan_ok=True)


def test_against_numpy():
    g = torch.randn(5, 7, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = g.to(torch.bfloat16)
    a, b = g.numpy(), x.to(torch.float64).numpy()
    e = b - a
    assert metrics.max_abs_err(g, x) == abs(e).max()
    assert metrics.max_abs_err_index(g, x) == np.unravel_index(abs(e).argmax(), e.shape)
    assert metrics.mean_abs_err(g, x) == close(abs(e).mean())
    assert metrics.rmse(g, x) == close(np.sqrt((e**2).mean()))
    assert metrics.rel_l2(g, x) == close(np.linalg.norm(e) / np.linalg.norm(a))
    assert metrics.rel_l1(g, x) == close(abs(e).sum() / abs(a).sum())
    assert metrics.cosine(g, x) == close((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    assert metrics.sqnr_db(g, x) == close(10 * np.log10((a**2).sum() / (e**2).sum()))


def test_closed_forms():
    g = torch.tensor([3.0, -4.0])
    assert metrics.cosine(g, -g) == -1.0
    assert metrics.cosine(g, torch.tensor([4.0, 3.0])) == 0.0
    assert metrics.sqnr_db(g, 1.1 * g.double()) == close(20.0)
    assert metrics.rel_l2(g, 1.5 * g) == metrics.rel_l1(g, 1.5 * g) == 0.5


@settings(deadline=None)
@given(pairs(), st.randoms(use_true_random=False))
def test_order_of_elements_does_not_matter(pair, random):
    g, x = (t.flatten() for t in pair)
    order = list(range(g.numel()))
    random.shuffle(order)
    for metric in [*SIZES, *RELATIVE, metrics.cosine, metrics.sqnr_db]:
        assert metric(g[order], x[order]) == close(metric(g, x), metric)


@settings(deadline=None)
@given(pairs(), st.integers(-20, 20))
def test_scale(pair, exponent):
    g, x = pair
    scale = 2.0**exponent
    for metric in SIZES:
        assert metric(g * scale, x * scale) == close(metric(g, x) * scale)
    for metric in [*RELATIVE, metrics.cosine]:
        assert metric(g * scale, x * scale) == close(metric(g, x), metric)


@settings(deadline=None)
@given(pairs())
def test_swapping_the_sides(pair):
    g, x = pair
    for metric in [*SIZES, metrics.cosine, metrics.mismatch_rate]:
        assert metric(g, x) == close(metric(x, g), metric)


@settings(deadline=None)
@given(pairs())
def test_means_are_ordered(pair):
    mean, root, most = (metric(*pair) for metric in (SIZES[1], SIZES[2], SIZES[0]))
    assert mean <= root * (1 + 1e-12)
    assert root <= most * (1 + 1e-12)


@settings(deadline=None)
@given(pairs())
def test_cosine_is_bounded(pair):
    value = metrics.cosine(*pair)
    assert math.isnan(value) or -1 <= value <= 1


@settings(deadline=None)
@given(pairs())
def test_arguments_are_left_alone(pair):
    before = [t.clone() for t in pair]
    metrics.measure_deviation(*pair, format="bf16", baseline=pair[0])
    assert all(torch.equal(a, b) for a, b in zip(before, pair, strict=True))


@settings(deadline=None)
@given(hnp.arrays(np.float64, st.integers(1, 400), elements=values))
def test_p99_is_an_order_statistic(array):
    found = p99(torch.tensor(array))
    assert found == np.quantile(array, 0.99, method="inverted_cdf")


@pytest.mark.parametrize("n", [1, 2, 99, 100, 101, 100_000])
def test_p99_of_a_ramp(n):
    shuffled = torch.randperm(n, generator=torch.Generator().manual_seed(n)) + 1
    assert p99(shuffled) == math.ceil(round(0.99 * n, 6))


@pytest.mark.parametrize("size", [1, 7, 300, 3000])
def test_p99_by_blocks(size):
    random = torch.Generator().manual_seed(size)
    data = torch.rand(3000, dtype=torch.float64, generator=random) + 1
    for order in (data, data.sort().values, data.sort(descending=True).values):
        top = TopValues(3000)
        for block in order.split(size):
            top.add(block)
        assert top.smallest() == np.quantile(data, 0.99, method="inverted_cdf")
    top.add(torch.tensor([math.nan], dtype=torch.float64))
    assert math.isnan(top.smallest())


def test_mismatch_of_special_values():
    a = torch.tensor([0.0, math.nan, math.inf, 1.0])
    b = torch.tensor([-0.0, -math.nan, math.inf, 1.0])
    assert metrics.mismatch_rate(a, b) == 0.25
    assert metrics.mismatch_rate(a, a.to(torch.bfloat16)) == 0.0
    payload = torch.tensor([0x7FC00001, 0x7F800001], dtype=torch.int32).view(torch.float32)
    assert metrics.mismatch_rate(payload, torch.full((2,), math.nan)) == 0.0


@settings(max_examples=30, deadline=None)
@given(pairs())
def test_mismatch_counts_what_numpy_counts(pair):
    g, x = (t.to(torch.bfloat16) for t in pair)
    assume(not bool(((g == 0) & (x == 0)).any()))
    expected = (g.float().numpy() != x.float().numpy()).mean()
    assert metrics.mismatch_rate(g, x) == close(float(expected))


@pytest.mark.parametrize(
    ("golden", "x", "says"),
    [
        (torch.zeros(2), torch.zeros(3), "shapes differ"),
        (torch.zeros(2), torch.zeros(2, device="meta"), "devices differ"),
        (torch.zeros(2), torch.zeros(2, dtype=torch.complex64), "complex"),
    ],
)
def test_what_cannot_be_compared(golden, x, says):
    with pytest.raises(UsageError, match=says):
        metrics.rmse(golden, x)
    with pytest.raises(UsageError, match=says):
        metrics.measure_deviation(golden, x, format="bf16")


def test_gradients_are_left_out():
    x = torch.ones(3, requires_grad=True)
    assert metrics.rmse(torch.zeros(3), x) == 1.0
    assert metrics.measure_deviation(torch.zeros(3), x, format="bf16").rmse == 1.0
