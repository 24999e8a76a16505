"""`compare`: any two callables, and a golden that has earned it."""

import io
import math

import pytest
import torch
from rich.console import Console
from torch.nn.functional import scaled_dot_product_attention as sdpa

import roundoff
from roundoff.bench.compare import compare
from roundoff.errors import GoldenError, KernelError, UsageError
from roundoff.metrics import measure_deviation


def tensors(n=3, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 32, 16, generator=generator).to(dtype) for _ in range(n)]


def by_hand(q, k, v):
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v


class TestComparison:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_it_is_what_the_metrics_say(self, dtype):
        inputs = tensors(dtype=dtype)
        found = compare(sdpa, by_hand, *inputs, cluster_dims=2)
        golden = sdpa(*(x.double() for x in inputs))
        base, x = sdpa(*inputs), by_hand(*inputs)
        name = found.format.name
        assert found.baseline == measure_deviation(golden, base, format=name, cluster_dims=2)
        assert found.candidate == measure_deviation(
            golden, x, format=name, baseline=base, cluster_dims=2
        )
        assert found.err_ratio == pytest.approx(found.candidate.rmse / found.baseline.rmse)
        assert found.floor.rmse <= min(found.baseline.rmse, found.candidate.rmse)

    def test_the_same_function_twice(self):
        found = compare(sdpa, sdpa, *tensors())
        assert found.err_ratio == pytest.approx(1)
        assert found.candidate.mismatch_rate == 0

    def test_golden_as_a_function_and_as_a_tensor(self):
        inputs = tensors()
        true = by_hand(*(x.double() for x in inputs))
        assert compare(sdpa, by_hand, *inputs, golden=by_hand) == compare(
            sdpa, by_hand, *inputs, golden=true
        )

    def test_a_wider_tensor_than_the_outputs_is_enough(self):
        inputs = tensors()
        true = by_hand(*(x.float() for x in inputs))
        assert compare(sdpa, by_hand, *inputs, golden=true).err_ratio > 1

    def test_an_exact_operation(self):
        """All outputs are numbers of the format, and golden is right nevertheless."""
        found = compare(torch.relu, lambda x: x.clamp(min=0), *tensors(1, torch.float32))
        assert math.isnan(found.err_ratio)
        assert found.candidate.rmse == 0

    def test_what_is_no_tensor_is_passed_on(self):
        inputs = tensors(1)
        found = compare(torch.softmax, lambda x, dim: (x.softmax(dim), None), *inputs, -1)
        assert found.candidate.mismatch_rate == 0

    def test_nan_is_counted(self):
        found = compare(torch.sin, lambda x: x * float("nan"), *tensors(1))
        assert found.candidate.nan_count == found.candidate.n
        assert "nan" in str(found)

    def test_nothing_of_the_callers_is_changed(self):
        def spoils(x):
            out = x.sin() + torch.rand(())
            x.zero_()
            torch.set_default_dtype(torch.float64)
            return out

        [x] = tensors(1)
        x.requires_grad_(True)
        before, state = x.detach().clone(), torch.get_rng_state()
        found = compare(lambda x: x.sin() + torch.rand(()), spoils, x, golden=torch.sin)
        assert found.candidate.mismatch_rate == 0  # both drew the same number
        assert torch.equal(x.detach(), before)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.get_default_dtype() == torch.float32

    def test_it_is_public(self):
        assert roundoff.compare is compare
        assert isinstance(compare(sdpa, sdpa, *tensors()), roundoff.Comparison)

    def test_it_reads(self):
        found = compare(sdpa, by_hand, *tensors())
        assert "rmse x" in str(found)
        assert max(map(len, str(found).splitlines())) <= 100
        out = io.StringIO()
        Console(file=out, width=100).print(found)
        assert "candidate" in out.getvalue()


class TestRefusals:
    def test_golden_of_another_shape(self):
        with pytest.raises(
            GoldenError, match=r"golden has shape \(3,\); expected \(2, 3, 32, 16\)"
        ):
            compare(sdpa, by_hand, *tensors(), golden=torch.zeros(3).double())

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_golden_of_the_same_precision(self, dtype):
        inputs = tensors(dtype=dtype)
        with pytest.raises(GoldenError, match="cannot judge a candidate of"):
            compare(sdpa, by_hand, *inputs, golden=sdpa(*inputs))

    def test_float64_candidates_have_no_golden_here(self):
        with pytest.raises(GoldenError, match=r"torch\.float64 and cannot judge"):
            compare(sdpa, by_hand, *tensors(dtype=torch.float64))

    def test_golden_that_is_narrow_inside(self):
        def narrow(q, k, v):
            return sdpa(q.float(), k.float(), v.float()).to(q.dtype)

        with pytest.raises(GoldenError, match=r"computes in torch\.float32 inside"):
            compare(narrow, by_hand, *tensors(dtype=torch.float32))
        assert compare(narrow, by_hand, *tensors(dtype=torch.float32), golden=sdpa).err_ratio > 0

    def test_outputs_of_other_shapes(self):
        with pytest.raises(
            KernelError, match=r"candidate returned shape .*31, 16\); expected .*32"
        ):
            compare(sdpa, lambda q, k, v: sdpa(q, k, v)[:, :, 1:], *tensors())

    @pytest.mark.parametrize("result", [None, (), 3, torch.ones(2, dtype=torch.int64)])
    def test_outputs_that_are_no_tensors(self, result):
        with pytest.raises(KernelError, match="the candidate returned"):
            compare(sdpa, lambda q, k, v: result, *tensors())

    def test_no_tensor_at_all(self):
        with pytest.raises(UsageError, match="needs a floating-point tensor"):
            compare(sdpa, sdpa, 1, 2)
