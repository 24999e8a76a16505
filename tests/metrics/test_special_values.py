"""NaN, infinities, zeros and nothing at all: one table, for the plain functions and the pass."""

import math

import pytest
import torch

from roundoff import metrics

nan, inf = math.nan, math.inf
ULP_SUB = 2.0**-133  # the spacing of bf16 around zero

SIZES = ["max_abs_err", "mean_abs_err", "rmse", "rel_l2", "rel_l1", "cosine", "sqnr_db"]
ULPS = ["ulp_mean", "ulp_p99", "ulp_share_above_1"]
BIAS = ["gain", "sign_bias", "mean_signed_err"]
COUNTS = ["nan_count", "inf_count", "nonfinite_new"]


def all_nan(*names):
    return dict.fromkeys(names, nan)


TABLE = {
    "empty": (
        [],
        [],
        all_nan(*SIZES, *ULPS, *BIAS) | dict.fromkeys(COUNTS, 0) | {"max_abs_err_index": None},
    ),
    "exact": (
        [1.0, -2.0],
        [1.0, -2.0],
        dict.fromkeys(["max_abs_err", "rmse", "rel_l2", "rel_l1", *ULPS, *BIAS], 0.0)
        | {"cosine": 1.0, "sqnr_db": inf, "max_abs_err_index": None},
    ),
    "golden zero, exact": (
        [0.0, 0.0],
        [0.0, -0.0],
        {"rel_l2": 0.0, "rel_l1": 0.0, "sqnr_db": inf, "ulp_mean": 0.0, "gain": nan}
        | {"cosine": nan, "sign_bias": 0.0, "mean_signed_err": 0.0},
    ),
    "golden zero, error": (
        [0.0, 0.0],
        [0.0, ULP_SUB],
        {"rel_l2": inf, "rel_l1": inf, "sqnr_db": -inf, "cosine": nan, "gain": nan}
        | {"sign_bias": 0.0, "ulp_mean": 0.5, "ulp_share_above_1": 0.0, "max_abs_err_index": (1,)},
    ),
    "zero output": (
        [3.0, 4.0],
        [0.0, 0.0],
        {"rel_l2": 1.0, "sqnr_db": 0.0, "cosine": nan, "gain": -1.0, "sign_bias": -3.5},
    ),
    "NaN in x": (
        [1.0, 2.0, 3.0, 4.0],
        [9.0, nan, inf, nan],
        all_nan(*SIZES, "ulp_mean", "ulp_p99", *BIAS)
        | {"nan_count": 2, "inf_count": 1, "nonfinite_new": 3, "ulp_share_above_1": 1.0}
        | {"max_abs_err_index": (1,)},
    ),
    "NaN in golden": (
        [1.0, nan],
        [1.0, 2.0],
        all_nan(*SIZES, "ulp_mean", "ulp_p99", *BIAS)
        | {"nan_count": 0, "nonfinite_new": 0, "ulp_share_above_1": 0.5, "max_abs_err_index": (1,)},
    ),
    "NaN in both": ([nan], [nan], all_nan(*SIZES) | {"nan_count": 1, "nonfinite_new": 0}),
    "infinity in x": (
        [1.0, 2.0],
        [1.5, -inf],
        {"max_abs_err": inf, "mean_abs_err": inf, "rmse": inf, "rel_l2": inf, "rel_l1": inf}
        | {"sqnr_db": -inf, "cosine": nan, "gain": -inf, "sign_bias": -inf}
        | {"mean_signed_err": -inf, "inf_count": 1, "nonfinite_new": 1, "ulp_mean": inf}
        | {"ulp_share_above_1": 1.0, "max_abs_err_index": (1,)},
    ),
    "infinity in golden": (
        [1.0, inf],
        [1.0, 2.0],
        {"max_abs_err": inf, "rmse": inf, "rel_l2": nan, "rel_l1": nan, "inf_count": 0}
        | {"cosine": nan, "gain": nan, "nonfinite_new": 0, "max_abs_err_index": (1,)},
    ),
    "infinities of two signs": (
        [1.0, inf],
        [1.0, -inf],
        {"max_abs_err": inf, "rmse": inf, "rel_l2": nan, "inf_count": 1, "nonfinite_new": 0},
    ),
    "one infinity on both sides": (
        [3.0, -inf, 4.0, inf],
        [3.0, -inf, 4.5, inf],
        {"max_abs_err": 0.5, "mean_abs_err": 0.125, "rmse": 0.25, "rel_l2": 0.1}
        | {"inf_count": 2, "nonfinite_new": 0, "gain": 0.08, "sign_bias": 0.125}
        | {"ulp_mean": 4.0, "ulp_share_above_1": 0.25, "max_abs_err_index": (2,)},
    ),
}


def plain(golden, x):
    """The metrics by the plain functions, by name."""
    found = {name: getattr(metrics, name)(golden, x) for name in [*SIZES, "max_abs_err_index"]}
    found |= {name: getattr(metrics, name)(golden, x, "bf16") for name in ULPS}
    found |= {name: getattr(metrics, name)(golden, x, cluster_dims=0).value for name in BIAS}
    found |= {"nan_count": metrics.nan_count(x), "inf_count": metrics.inf_count(x)}
    return found | {"nonfinite_new": metrics.nonfinite_new(golden, x)}


def one_pass(golden, x):
    d = metrics.measure_deviation(golden, x, format="bf16", cluster_dims=0)
    return {name: getattr(d, name) for name in d.to_record()}


@pytest.mark.parametrize("measure", [plain, one_pass])
@pytest.mark.parametrize("case", TABLE)
def test_table(case, measure):
    golden, x, expected = TABLE[case]
    found = measure(torch.tensor(golden, dtype=torch.float64), torch.tensor(x))
    assert found["max_abs_err_index"] == expected.get(
        "max_abs_err_index", found["max_abs_err_index"]
    )
    numbers = {name: value for name, value in expected.items() if name != "max_abs_err_index"}
    got = {name: found[name] for name in numbers}
    assert got == pytest.approx(numbers, rel=1e-14, nan_ok=True)


@pytest.mark.parametrize("case", TABLE)
def test_no_standard_error_from_one_cluster(case):
    golden, x, _ = TABLE[case]
    d = metrics.measure_deviation(
        torch.tensor(golden), torch.tensor(x), format="bf16", cluster_dims=0
    )
    assert math.isnan(d.gain_se)
    assert math.isnan(d.sign_bias_se)
    assert math.isnan(d.mean_signed_err_se)
    assert d.clusters == 1


def test_first_nan_beats_an_earlier_infinity():
    golden = torch.zeros(3, 70_000)
    x = golden.clone()
    x[0, 5], x[1, 7], x[2, 0] = inf, nan, nan
    d = metrics.measure_deviation(golden, x, format="bf16")
    assert math.isnan(d.max_abs_err)
    assert d.max_abs_err_index == metrics.max_abs_err_index(golden, x) == (1, 7)


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0), (2, 0, 5)])
def test_empty_shapes(shape):
    d = metrics.measure_deviation(torch.zeros(shape), torch.zeros(shape), format="bf16")
    assert (d.n, d.clusters, d.nan_count) == (0, shape[0], 0)
    assert math.isnan(d.rmse)
    assert math.isnan(d.gain)
    assert math.isnan(d.gain_se)


def test_scalar_tensor():
    d = metrics.measure_deviation(
        torch.tensor(2.0), torch.tensor(3.0), format="bf16", cluster_dims=0
    )
    assert (d.max_abs_err, d.max_abs_err_index, d.n) == (1.0, (), 1)
    assert d.to_record()["max_abs_err_index"] == []
