"""JAX on XLA: what it takes, what proves that it ran, and the recipe beside it."""

import math
import os
from dataclasses import replace

import pytest
import torch

from roundoff.errors import KernelError
from roundoff.formats import FORMATS, round_to
from roundoff.kernels import KERNELS, jax_attention
from roundoff.operators import OPERATORS
from roundoff.operators.attention.recipe import Normalise
from roundoff.sites import INPUT, OPMATH, Accumulator

jax = pytest.importorskip("jax", reason="needs the extra jax")

ATTENTION = OPERATORS["attention"]
CASES = [
    {"seq_len": 1},
    {"seq_len": 1, "kv_len": 300},
    {"seq_len": 33, "head_dim": 40},
    {"seq_len": 100, "kv_len": 300, "mask": "causal-lower-right", "kv_heads": 1},
    {"seq_len": 300, "mask": "causal", "head_dim": 64},
    {"seq_len": 60, "mask": "boolean"},
    {"seq_len": 64, "mask": "additive"},
    {"seq_len": 257, "head_dim": 128, "scale": 0.3},
    pytest.param({"seq_len": 1024, "head_dim": 128}, marks=pytest.mark.slow),
    pytest.param({"seq_len": 64, "kv_len": 2048, "head_dim": 64}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("given", CASES, ids=str)
def test_the_recipe_in_bf16(given, draw, match):
    """What differs are last bits of P: another exp, and other orders of sums."""
    assert match("jax-xla", draw("bf16", **given)) >= 0.998


def test_the_choices_of_the_recipe_are_each_needed(draw, match):
    problem = draw("bf16", seq_len=257, head_dim=64, heads=4)
    whole = match("jax-xla", problem)
    assert whole > 0.999
    others = {
        "P not rounded": {"probabilities": OPMATH},
        "l divided out at the end": {"normalise": Normalise("end")},
        "S rounded": {"scores": FORMATS["bf16"]},
    }
    for label, changes in others.items():
        assert match("jax-xla", problem, **changes) < 0.9, label


GRADIENTS = [
    {"seq_len": 33, "mask": "causal", "head_dim": 128},
    {"seq_len": 100, "heads": 4, "kv_heads": 2, "head_dim": 64},
    {"seq_len": 60, "kv_len": 200, "mask": "boolean"},
]


@pytest.mark.parametrize("given", GRADIENTS, ids=str)
def test_the_gradients_of_the_recipe_in_bf16(given, draw, share):
    problem = draw("bf16", gradients="yes", **given)
    golden = ATTENTION.golden(problem)[0]
    kernel = KERNELS["jax-xla"].run(problem)
    recipe = ATTENTION.run(ATTENTION.recipes["jax-xla"], problem)[0]
    for name in ("dq", "dk", "dv"):
        assert share(kernel[name], recipe[name]) > 0.99, name
        assert share(kernel[name], round_to(golden[name], "bf16")) < 0.7, name


@pytest.mark.parametrize(
    ("changes", "output"),
    [
        ({"dp": Accumulator()}, "dq"),
        ({"ds": INPUT}, "dk"),
        ({"delta": "stored"}, "dq"),
        ({"probabilities": OPMATH}, "dv"),
        ({"heads": INPUT}, "dv"),
    ],
    ids=str,
)
def test_the_choices_of_the_backward_pass_are_each_needed(changes, output, draw, share):
    problem = draw("bf16", gradients="yes", seq_len=100, heads=4, kv_heads=2, head_dim=64)
    recipe = ATTENTION.recipes["jax-xla"]
    other = replace(recipe, backward=replace(recipe.backward, **changes))
    kernel = KERNELS["jax-xla"].run(problem)[output]
    assert share(kernel, ATTENTION.run(other, problem)[0][output]) < 0.9


def test_the_division_is_a_multiplication_by_the_reciprocal(draw, match):
    """Seen in fp32 alone: where the products agree, twice as many bits do so too."""
    problem = draw("fp32", seq_len=128, head_dim=64)
    by_division = match("jax-xla", problem, normalise=Normalise("block", "division"))
    assert match("jax-xla", problem) > 1.3 * by_division


def test_the_causal_mask_aligns_at_the_upper_left(draw, with_inputs):
    problem = draw("fp32", seq_len=3, kv_len=8, mask="causal")
    v = problem.inputs["v"]
    out = KERNELS["jax-xla"].run(problem)["out"]
    torch.testing.assert_close(out[:, :, 0], v[:, :, 0])


def test_rows_that_see_no_key_are_refused(draw, with_inputs):
    """JAX averages all of V there, where attention is 0."""
    reason = "a row that sees no key (takes rows that see one)"
    refuses = KERNELS["jax-xla"].refuses
    assert refuses(draw("bf16", seq_len=9, kv_len=5, mask="causal-lower-right")) == reason
    boolean = draw("bf16", seq_len=9, mask="boolean")
    assert refuses(boolean) is None
    hidden = boolean.inputs["mask"].clone()
    hidden[..., 4, :] = False
    assert refuses(with_inputs(boolean, mask=hidden)) == reason
    bias = torch.zeros(1, 2, 9, 9)
    additive = draw("bf16", seq_len=9, mask="additive")
    assert refuses(with_inputs(additive, mask=bias)) is None
    bias[..., 4, :] = -math.inf
    assert refuses(with_inputs(additive, mask=bias)) == reason


def test_what_is_refused_is_what_fails(draw):
    """XLA has no product of fp16 on a CPU: if it gets one, the refusal can go."""
    problem = draw("fp16", seq_len=8)
    assert "format fp16" in KERNELS["jax-xla"].refuses(problem)
    with pytest.raises(ValueError, match="F16_F16_F32"):
        KERNELS["jax-xla"].run(problem)


@pytest.mark.parametrize("format", ["bf16", "fp32"])
def test_one_key_returns_its_value_to_the_bit(format, draw):
    problem = draw(format, seq_len=5, kv_len=1)
    out = KERNELS["jax-xla"].run(problem)["out"]
    assert torch.equal(out.float(), problem.inputs["v"].expand_as(out))


def test_another_program_is_found_out(draw, monkeypatch):
    monkeypatch.setattr(jax_attention, "_MODULE", "jit_other")
    with pytest.raises(KernelError, match="compiled 'jit_dot_product_attention', not 'jit_other'"):
        KERNELS["jax-xla"].bind(draw("bf16", seq_len=8))


def test_it_leaves_no_trace(draw, monkeypatch):
    jax_attention._jax.cache_clear()
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    before, threads = dict(os.environ), torch.get_num_threads()
    KERNELS["jax-xla"].run(draw("bf16", seq_len=8))
    assert dict(os.environ) == before
    assert torch.get_num_threads() == threads


def test_a_missing_library_names_its_extra(monkeypatch):
    monkeypatch.setattr("roundoff.kernels.kernel.is_installed", lambda _: False)
    assert KERNELS["jax-xla"].missing() == "no jax; pip install 'roundoff[jax]'"


def test_the_output_is_cast_once(draw, match):
    problem = draw("bf16", seq_len=300)
    assert match("jax-xla", problem, pv=Accumulator(FORMATS["bf16"], chunk=64)) < 0.9
