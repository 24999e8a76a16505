"""The public names: small, sorted, lazy, and what the README shows of them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.nn import functional

import roundoff
from roundoff.errors import UnknownNameError, UsageError


def test_names_are_sorted_and_all_there() -> None:
    assert roundoff.__all__ == sorted(roundoff.__all__)
    for name in roundoff.__all__:
        assert getattr(roundoff, name) is not None
    assert set(roundoff.__all__) <= set(dir(roundoff))
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = roundoff.nothing_like_it


def test_importing_roundoff_loads_no_library() -> None:
    code = "import roundoff, sys; print({'torch', 'numpy', 'numba', 'pandas'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


def tensors(dtype: torch.dtype, heads: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 4, 96, 32), (1, heads, 80, 32), (1, heads, 80, 16)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def test_golden_is_torch_in_float64() -> None:
    q, k, v = tensors(torch.float64)
    mask = torch.rand(96, 80, generator=torch.Generator().manual_seed(1)) < 0.7
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    found = roundoff.golden(q, k, v, mask=mask[None, None])
    torch.testing.assert_close(found.out, expected, rtol=1e-13, atol=1e-14)


def test_sampled_rows_are_rows_of_the_whole() -> None:
    q, k, v = tensors(torch.bfloat16)
    whole = roundoff.golden(q, k, v, causal=True)
    some = roundoff.golden(q, k, v, causal=True, rows=[5, 90, 7])
    torch.testing.assert_close(some.out, whole.out[:, :, [5, 90, 7]], rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(some.lse, whole.lse[:, :, [5, 90, 7]], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_emulate_keeps_the_dtype_and_comes_near(dtype: torch.dtype) -> None:
    q, k, v = tensors(dtype)
    found = roundoff.emulate("fa2", q, k, v, causal=True)
    exact = roundoff.golden(q, k, v, causal=True)
    assert found.out.dtype == dtype
    worst = (found.out.double() - exact.out).abs().max()
    assert worst <= 4 * torch.finfo(dtype).eps * exact.out.abs().max()


@pytest.mark.parametrize(
    ("shapes", "word"),
    [
        ([(1, 2, 8), (1, 2, 8, 4), (1, 2, 8, 4)], "four"),
        ([(1, 2, 8, 0), (1, 2, 8, 0), (1, 2, 8, 4)], "head_dim"),
        ([(1, 3, 8, 4), (1, 2, 8, 4), (1, 2, 8, 4)], "multiple"),
        ([(1, 2, 8, 4), (1, 2, 7, 4), (1, 2, 8, 4)], "as many keys"),
    ],
)
def test_shapes_that_do_not_fit_are_one_clear_line(shapes: list, word: str) -> None:
    with pytest.raises(UsageError) as caught:
        roundoff.golden(*(torch.zeros(s) for s in shapes))
    assert "\n" not in str(caught.value)
    assert word in str(caught.value) or "batch, heads" in str(caught.value)


def test_unknown_recipes_suggest_near_ones() -> None:
    with pytest.raises(UnknownNameError, match="fa2"):
        roundoff.emulate("fa22", *tensors(torch.float32))


def test_causal_and_mask_together_are_refused() -> None:
    q, k, v = tensors(torch.float32)
    with pytest.raises(UsageError, match="causal"):
        roundoff.golden(q, k, v, causal=True, mask=torch.ones(1, 1, 96, 80, dtype=torch.bool))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mask": torch.ones(3, 3)}, r"mask \(3, 3\): expected \[batch or 1, heads or 1, 8, 8\]"),
        ({"mask": torch.ones(1, 2, 8, 7)}, "expected"),
        ({"rows": [8]}, "row 8: q has 8 rows"),
        ({"rows": [0, -1]}, "row -1: q has 8 rows"),
        ({"rows": 5}, "rows 5: expected a sequence"),
    ],
)
def test_masks_and_rows_that_do_not_fit_are_one_clear_line(given: dict, words: str) -> None:
    q = torch.ones(1, 2, 8, 4)
    with pytest.raises(UsageError, match=words):
        roundoff.golden(q, q, q, **given)


def test_a_scale_of_zero_is_a_scale() -> None:
    q, k, v = tensors(torch.float64)
    mean = v.repeat_interleave(2, 1).mean(2, keepdim=True).expand(1, 4, 96, 16)
    torch.testing.assert_close(roundoff.golden(q, k, v, scale=0.0).out, mean)


def test_autocast_does_not_touch_the_emulation() -> None:
    q, k, v = tensors(torch.float32)
    outside = roundoff.emulate("torch-math", q, k, v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = roundoff.emulate("torch-math", q, k, v)
    assert torch.equal(outside.out, inside.out)


@pytest.mark.parametrize(
    "function", [roundoff.golden, lambda *x, **g: roundoff.emulate("fa2", *x, **g)]
)
def test_arrays_are_refused_by_name(function) -> None:
    q, k, v = tensors(torch.float32)
    for name, given in (("q", (q.numpy(), k, v)), ("v", (q, k, v.tolist()))):
        with pytest.raises(
            UsageError, match=f"{name} is a (ndarray|list); expected a torch tensor"
        ):
            function(*given)
    with pytest.raises(UsageError, match="mask is a ndarray; expected a torch tensor"):
        function(q, k, v, mask=q.numpy())


def test_what_is_no_tensor_and_no_function_is_refused() -> None:
    with pytest.raises(UsageError, match="round_to takes a tensor, not a list"):
        roundoff.round_to([1.0], "bf16")  # type: ignore[arg-type]
    x = torch.ones(2, 2)
    with pytest.raises(UsageError, match="the baseline is 'torch-math'; expected a function"):
        roundoff.compare("torch-math", torch.softmax, x)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="the candidate is 3; expected a function"):
        roundoff.compare(torch.neg, 3, x)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="golden is 'exact'; expected a function, a tensor"):
        roundoff.compare(torch.neg, torch.neg, x, golden="exact")  # type: ignore[arg-type]


def test_what_a_kernel_is_declared_to_take() -> None:
    from roundoff.kernels.declared import declared_by

    @roundoff.kernel(formats="bfloat16", masks="causal")
    def one(q, k, v, causal=False): ...

    assert declared_by(one).limits.formats == ("bf16",)
    assert declared_by(one).limits.masks == ("causal",)
    with pytest.raises(UnknownNameError, match="unknown format 'bf17'; did you mean 'bf16'"):
        roundoff.kernel(formats=("bf17",))
