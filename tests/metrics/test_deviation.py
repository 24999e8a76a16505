"""The one pass agrees with the plain definitions, for every shape, layout and block."""

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roundoff import metrics
from roundoff.errors import UnknownNameError
from roundoff.formats import get_format, round_to
from roundoff.metrics import measure_deviation, stream
from roundoff.metrics.blocks import blocks

BF16 = get_format("bf16")
WITHOUT_FORMAT = ["max_abs_err", "mean_abs_err", "rmse", "rel_l2", "rel_l1", "cosine", "sqnr_db"]
ULPS = ["ulp_mean", "ulp_p99", "ulp_share_above_1"]
BIAS = ["gain", "sign_bias", "mean_signed_err"]


def close(value):
    return pytest.approx(value, rel=1e-9, abs=1e-15, nan_ok=True)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_plain(d, golden, x, cluster_dims):
    for name in WITHOUT_FORMAT:
        assert getattr(d, name) == close(getattr(metrics, name)(golden, x)), name
    for name in ULPS:
        assert getattr(d, name) == close(getattr(metrics, name)(golden, x, "bf16")), name
    for name in BIAS:
        found = getattr(metrics, name)(golden, x, cluster_dims=cluster_dims)
        assert getattr(d, name) == close(found.value), name
        assert getattr(d, name + "_se") == close(found.se), name
    assert d.max_abs_err_index == metrics.max_abs_err_index(golden, x)
    assert d.n == golden.numel()


@pytest.mark.parametrize("limit", [1, 7, 64, 1000, 1 << 16])
@pytest.mark.parametrize("cluster_dims", [0, 1, 2, 4])
def test_one_pass_is_the_plain_definitions(monkeypatch, limit, cluster_dims):
    monkeypatch.setattr(stream, "CPU_BLOCK", limit)
    golden = normal(2, 3, 5, 4)
    x = (golden + 0.01 * normal(2, 3, 5, 4, seed=1)).to(torch.bfloat16)
    d = measure_deviation(golden, x, format="bf16", cluster_dims=cluster_dims)
    assert_plain(d, golden, x, cluster_dims)
    assert d.clusters == math.prod(golden.shape[:cluster_dims])


def test_any_layout():
    golden, x = normal(6, 4, 5).transpose(0, 1), normal(4, 5, 6, seed=1).permute(0, 2, 1)
    d = measure_deviation(golden, x, format="bf16")
    assert_plain(d, golden, x, 1)
    assert d == measure_deviation(golden.contiguous(), x.contiguous(), format="bf16")
    assert_plain(measure_deviation(golden[::2], x[::2], format="bf16"), golden[::2], x[::2], 1)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_any_dtype(dtype):
    golden = normal(8, 32)
    x = golden.to(dtype)
    assert_plain(measure_deviation(golden, x, format="bf16"), golden, x, 1)
    again = measure_deviation(golden, x.double(), format="bf16", baseline=x)
    assert (again.mismatch_rate, again.max_err_ratio) == (0.0, 1.0)
    assert again.err_ratio == close(1.0)


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), max_size=4), st.integers(1, 30), st.data())
def test_blocks_cover_every_element_once(shape, limit, data):
    shape = tuple(shape)
    leading = data.draw(st.integers(0, len(shape)))
    clusters, n = math.prod(shape[:leading]), math.prod(shape)
    number, seen = torch.arange(n).reshape(shape), []
    for block in blocks(shape, limit, clusters):
        held = block.take(number)
        assert held.numel() <= limit
        assert held.flatten()[0] == block.offset
        of = held * clusters // n
        assert (of == torch.arange(block.clusters.start, block.clusters.stop)[:, None]).all()
        seen += held.flatten().tolist()
    assert seen == list(range(n))


def test_baseline():
    golden, candidate, baseline = normal(3, 40), normal(3, 40, seed=1), normal(3, 40, seed=2)
    d = measure_deviation(golden, candidate, format="bf16", baseline=baseline)
    assert d.err_ratio == close(metrics.rmse(golden, candidate) / metrics.rmse(golden, baseline))
    most = metrics.max_abs_err(golden, candidate) / metrics.max_abs_err(golden, baseline)
    assert d.max_err_ratio == close(most)
    assert d.mismatch_rate == metrics.mismatch_rate(baseline, candidate) == 1.0
    alone = measure_deviation(golden, candidate, format="bf16")
    assert (alone.mismatch_rate, alone.err_ratio, alone.max_err_ratio) == (None, None, None)
    names = ["mismatch_rate", "err_ratio", "max_err_ratio"]
    assert dataclasses.replace(d, **dict.fromkeys(names)) == alone


@pytest.mark.parametrize(
    ("candidate", "baseline", "expected"),
    [
        (1.0, 1.0, math.nan),  # both exact
        (1.0, 2.0, 0.0),
        (2.0, 1.0, math.inf),
        (math.nan, 2.0, math.nan),
        (2.0, math.nan, math.nan),
        (math.inf, 2.0, math.inf),
        (2.0, math.inf, 0.0),
    ],
)
def test_ratio_to_the_baseline(candidate, baseline, expected):
    golden = torch.ones(2, 2)
    given, other = torch.full((2, 2), candidate), torch.full((2, 2), baseline)
    d = measure_deviation(golden, given, format="bf16", baseline=other)
    assert [d.err_ratio, d.max_err_ratio] == pytest.approx([expected] * 2, nan_ok=True)


def test_empty_baseline():
    d = measure_deviation(torch.zeros(0), torch.zeros(0), format="bf16", baseline=torch.zeros(0))
    assert math.isnan(d.err_ratio)
    assert math.isnan(d.mismatch_rate)


@pytest.mark.parametrize("format", ["bf16", "fp16", "fp32"])
def test_floor_is_half_an_ulp(format):
    golden = normal(16, 512)
    low = metrics.floor(golden, format)
    assert low.ulp_p99 <= 0.5
    assert low.ulp_share_above_1 == 0
    assert low.ulp_mean == pytest.approx(0.25, abs=0.02)
    kernel = round_to(golden * (1 + 0.02 * normal(16, 512, seed=1)), format)
    assert measure_deviation(golden, kernel, format=format).rmse > low.rmse


def test_floor_of_float64_is_what_golden_leaves_out():
    golden, rest = normal(4, 8), normal(4, 8, seed=1) * 2.0**-55
    low = metrics.floor(golden, "fp64", golden_rest=rest)
    assert low.rmse == pytest.approx(rest.square().mean().sqrt().item())
    assert low.max_abs_err == rest.abs().max().item()
    assert metrics.floor(golden, "fp64").rmse == 0


def test_record_is_plain_and_complete():
    d = measure_deviation(normal(2, 3), normal(2, 3, seed=1), format=BF16)
    record = d.to_record()
    assert list(record) == list(metrics.METRICS)
    assert json.loads(json.dumps(record)) == record
    assert all(v is None or type(v) in (int, float, list) for v in record.values())


def test_pooling_deviations():
    golden, x = normal(4, 3, 8), normal(4, 3, 8, seed=1)
    cells = [measure_deviation(g, c, format="bf16") for g, c in zip(golden, x, strict=True)]
    pooled = cells[0].sums.merge(*(c.sums for c in cells[1:])).gain()
    whole = metrics.gain(golden, x, cluster_dims=2)
    assert (pooled.value, pooled.se, pooled.clusters) == close((whole.value, whole.se, 12))


def test_unknown_format():
    with pytest.raises(UnknownNameError, match="bf15"):
        measure_deviation(torch.ones(1), torch.ones(1), format="bf15")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_agrees_with_cpu():
    golden, x = normal(4, 3, 1000), normal(4, 3, 1000, seed=1)
    here = measure_deviation(golden, x, format="bf16", baseline=golden.float())
    there = measure_deviation(
        golden.cuda(), x.cuda(), format="bf16", baseline=golden.float().cuda()
    )
    for name, value in here.to_record().items():
        assert there.to_record()[name] == close(value), name
