"""Our Triton kernel, interpreted here and compiled on CUDA, and the recipe beside it."""

import os
from dataclasses import replace

import pytest
import torch

from roundoff.formats import FORMATS, round_to
from roundoff.kernels import KERNELS
from roundoff.kernels.kernel import Kernel
from roundoff.operators import OPERATORS
from roundoff.operators.attention.recipe import Exponential, Prescale, Tile
from roundoff.sites import OPMATH
from roundoff.subjects import KernelSubject

pytest.importorskip("triton", reason="needs the extra triton")

ATTENTION = OPERATORS["attention"]
KERNEL: Kernel = KERNELS["triton-tutorial"]
only_avx512 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512",
    reason="numpy takes the sums of its products in another order",
)
CASES = [
    {"seq_len": 1},
    {"seq_len": 33, "head_dim": 16},
    {"seq_len": 64, "head_dim": 64},
    {"seq_len": 65, "kv_len": 129, "batch": 2},
    {"seq_len": 100, "kv_len": 300, "mask": "causal-lower-right", "kv_heads": 1},
    {"seq_len": 150, "mask": "causal", "scale": 0.3},
    {"seq_len": 130, "head_dim": 128, "heads": 1},
    pytest.param({"seq_len": 64, "kv_len": 2048}, marks=[pytest.mark.slow, only_avx512]),
]


@pytest.mark.parametrize("given", CASES, ids=str)
@pytest.mark.parametrize(("format", "least"), [("fp16", 0.994), ("fp32", 0.15)])
def test_the_recipe_of_the_interpreted_kernel(format, least, given, draw, match):
    """In fp32 numpy's exp2 and sums are seen; in fp16 hardly one of them survives the casts."""
    assert match("triton-tutorial", draw(format, **given)) >= least


def test_the_choices_of_the_recipe_are_each_needed(draw, match):
    problem = draw("fp16", seq_len=64, kv_len=400, head_dim=64, inputs="normal:3")
    whole = match("triton-tutorial", problem)
    others = {
        "P not rounded": {"probabilities": OPMATH},
        "whole rows": {"tile": Tile()},
        "tiles from the last": {"tile": Tile(64, direction="backward")},
        "P in bf16": {"probabilities": FORMATS["bf16"]},
    }
    for label, changes in others.items():
        assert match("triton-tutorial", problem, **changes) < whole - 0.02, label


def test_base_2_is_seen_in_fp32(draw, match):
    problem = draw("fp32", seq_len=64, kv_len=200)
    # numpy computes exp2 to the last bit, so the base shows beside one that does, too.
    base_e = Exponential(approximation="rounded")
    base_2 = Exponential("2", log2e="scale", approximation="rounded")
    least = match("triton-tutorial", problem, exponential=base_e) + 0.1
    assert match("triton-tutorial", problem, exponential=base_2) > least


GRADIENTS = [
    {"seq_len": 100, "head_dim": 64},
    {"seq_len": 150, "mask": "causal"},
    {"seq_len": 70, "kv_heads": 1},
    {"seq_len": 40, "kv_len": 200, "mask": "causal-lower-right", "batch": 2},
]


@pytest.mark.parametrize("given", GRADIENTS, ids=str)
def test_the_gradients_of_the_recipe(given, draw, share):
    problem = draw("fp16", gradients="yes", **given)
    golden = ATTENTION.golden(problem)[0]
    kernel, recipe = KERNEL.run(problem), ATTENTION.run(ATTENTION.recipes[KERNEL.name], problem)[0]
    for name in ("dq", "dk", "dv"):
        assert share(kernel[name], recipe[name]) > 0.985, name
        assert share(kernel[name], round_to(golden[name], "fp16")) < 0.7, name


@pytest.mark.parametrize(
    ("changes", "output"),
    [
        ({"probabilities": OPMATH}, "dv"),
        ({"ds": OPMATH}, "dk"),
        ({"prescale": Prescale("k", OPMATH)}, "dq"),
        ({"delta": "exact"}, "dq"),
    ],
    ids=str,
)
def test_the_choices_of_the_backward_pass_are_each_needed(changes, output, draw, share):
    problem = draw("fp16", gradients="yes", seq_len=100, head_dim=64)
    recipe = ATTENTION.recipes[KERNEL.name]
    other = replace(recipe, backward=replace(recipe.backward, **changes))
    kernel = KERNEL.run(problem)[output]
    ours, others = (ATTENTION.run(r, problem)[0][output] for r in (recipe, other))
    assert share(kernel, others) < share(kernel, ours) - 0.01


@pytest.mark.parametrize("given", GRADIENTS, ids=str)
def test_gradients_are_golden_up_to_rounding(given, draw):
    problem = draw("fp32", gradients="yes", **given)
    golden, kernel = ATTENTION.golden(problem)[0], KERNEL.run(problem)
    for name in ("dq", "dk", "dv"):
        torch.testing.assert_close(kernel[name].double(), golden[name], rtol=1e-5, atol=2e-6)


def test_output_and_lse_are_attention(draw):
    problem = draw("fp32", seq_len=70, kv_len=90, mask="causal-lower-right", heads=4, kv_heads=2)
    golden = ATTENTION.golden(problem)[0]
    ours = KERNEL.run(problem)
    torch.testing.assert_close(ours["out"].double(), golden["out"], rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(ours["lse"].double(), golden["lse"], rtol=1e-6, atol=2e-6)


def test_a_row_that_sees_no_key_is_zero(draw):
    ours = KERNEL.run(draw("fp16", seq_len=9, kv_len=5, mask="causal-lower-right"))
    assert (ours["out"][:, :, :4] == 0).all()
    assert (ours["lse"][:, :, :4] == float("-inf")).all()
    assert ours["lse"][:, :, 4:].isfinite().all()


def test_it_is_interpreted_without_the_variable(draw, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    problem = draw("fp32", seq_len=8)
    subject = KernelSubject(ATTENTION, KERNEL)
    result = subject.run(problem, ATTENTION.golden(problem)[0])
    assert result.ran == ("triton::attention_forward interpreted",)
    assert "TRITON_INTERPRET" not in os.environ


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"format": "bf16"}, "format bf16 on the CPU (Triton's interpreter"),
        ({"format": "fp16", "head_dim": 40}, "head_dim 40 (takes 16, 32, 64, 128)"),
        ({"format": "fp16", "scale": -1.0}, "scale -1.0 (takes positive ones)"),
        ({"format": "fp16", "mask": "boolean"}, "mask boolean (takes none, causal,"),
    ],
)
def test_refusals_say_why(given, reason, draw):
    assert reason in KERNEL.refuses(draw(seq_len=8, **given))


def test_a_missing_library_names_its_extra(monkeypatch):
    monkeypatch.setattr("roundoff.kernels.kernel.is_installed", lambda _: False)
    assert KERNEL.missing() == "no triton; pip install 'roundoff[triton]'"
