"""The recipes of arXiv 2510.04212: what an offset of the maximum does, and what it leaves."""

import dataclasses

import pytest
import torch

from roundoff.formats import FORMATS
from roundoff.operators.attention.catalogue import RECIPES
from roundoff.operators.attention.operator import ATTENTION

FP64 = FORMATS["fp64"]


def drawn(**parameters):
    settled = ATTENTION.settle({"seq_len": 200, "heads": 2, "head_dim": 32, **parameters})
    return ATTENTION.draw(settled, FORMATS["bf16"], 3)


@pytest.mark.parametrize("scale", ["after", "fma", "argument"])
@pytest.mark.parametrize("base", ["e", "2"])
@pytest.mark.parametrize("rule", ["offset", "tie-safe"])
def test_another_maximum_is_exact_in_real_arithmetic(scale, base, rule):
    recipe = RECIPES["paper-fp64"].choose({"output": FP64})
    recipe = dataclasses.replace(
        recipe,
        maximum=dataclasses.replace(recipe.maximum, rule=rule, threshold=1.7),
        logits=dataclasses.replace(recipe.logits, scale=scale),
        exponential=dataclasses.replace(recipe.exponential, base=base),
    )
    problem = drawn(inputs="tied-one-signed", mask="causal")
    golden, found = ATTENTION.golden(problem)[0], ATTENTION.run(recipe, problem)[0]
    torch.testing.assert_close(found["out"], golden["out"], rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(found["lse"], golden["lse"], rtol=1e-11, atol=1e-13)


def test_an_offset_of_a_power_of_two_changes_no_bit():
    """P, l and O are all halved, which is exact: so is the bias that it leaves."""
    problem = drawn(inputs="tied-one-signed")
    plain = ATTENTION.run(RECIPES["failure-bf16"], problem)[0]["out"]
    half = ATTENTION.run(RECIPES["failure-bf16-offset-half"], problem)[0]["out"]
    other = ATTENTION.run(RECIPES["failure-bf16-offset"], problem)[0]["out"]
    assert (plain == half).double().mean() > 0.98  # the fused argument rounds at another place
    assert (plain == other).double().mean() < 0.9


def test_the_bias_is_there_and_the_controls_are_free_of_it():
    """One tile, O in bf16: errors point away from zero only with ties and one-signed V.

    At a head dim of 64 all other keys weigh about 1e-6; what they weigh is lost in the second
    rounding, a stretch of its own.
    """
    gains = {}
    for name in ("tied-one-signed", "tied-peak", "tied-one-signed:1"):
        problem = drawn(inputs=name, seq_len=400, tile=400, head_dim=64)
        golden = ATTENTION.golden(problem)[0]["out"]
        error = ATTENTION.run(RECIPES["fa2-bf16-output"], problem)[0]["out"].double() - golden
        gains[name] = ((error * golden).sum() / golden.square().sum()).item()
    assert gains["tied-one-signed"] > 5e-4
    assert abs(gains["tied-peak"]) < 1.5e-4
    assert abs(gains["tied-one-signed:1"]) < 1e-4
