"""What is said to be known of a recipe is what the evidence file holds."""

import math

import pytest

from roundoff.kernels import KERNELS
from roundoff.operators.attention.catalogue import RECIPES
from roundoff.operators.attention.evidence import evidence_of

# What a recipe is known not to follow, by output.
PARTLY = {("jax-xla", output): "beyond 768 tokens XLA leaves out the cast of dP"
          for output in ("dq", "dk")}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_run_exactly_where_there_is_evidence(name):
    assert (RECIPES[name].known == "run") == (evidence_of(name) is not None)


def test_gradients_of_every_kernel_that_has_them_are_held_to_their_recipe():
    followed = {n for n in RECIPES if evidence_of(n) and RECIPES[n].backward}
    assert followed >= {"torch-math", "torch-math-reduced", "torch-cpu-flash", "triton-tutorial"}
    for name in followed:
        assert set(evidence_of(name).held) == {"out", "dq", "dk", "dv"}, name


@pytest.mark.parametrize("name", [n for n in RECIPES if evidence_of(n)])
def test_evidence_is_whole(name):
    found = evidence_of(name)
    assert name in KERNELS
    assert found.version
    assert found.instructions
    for output, formats in found.held.items():
        assert formats
        for held in formats.values():
            assert held.cells > 0
            assert 0 <= held.worst <= held.match <= 1
            assert held.match > held.null
            lift = (held.match - held.null) / (1 - held.null)
            assert math.isclose(held.lift, lift, abs_tol=1e-12)
            near = held.match >= held.floor - 1e-3  # as near as another order of its own sums
            assert near != ((name, output) in PARTLY)
            assert 0 <= held.r2 <= 1 + 1e-9
