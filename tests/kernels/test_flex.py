"""Compiled FlexAttention on a CPU, and the recipe beside it."""

import pytest

from roundoff.kernels import KERNELS
from roundoff.operators.attention.recipe import Tile

pytestmark = pytest.mark.skipif(
    KERNELS["torch-flex"].missing() is not None, reason="needs a C++ compiler"
)


@pytest.mark.slow
@pytest.mark.parametrize(("length", "mask"), [(400, "causal"), (500, "window:300")])
def test_blocks_that_the_mask_cuts_come_first(length, mask, draw, match):
    problem = draw("bf16", seq_len=length, mask=mask, inputs="normal:3")
    whole = match("torch-flex", problem)
    assert whole > 0.99
    for direction in ("forward", "backward"):
        other = Tile(128, 128, direction)
        assert match("torch-flex", problem, tile=other) < whole - 0.02, direction
