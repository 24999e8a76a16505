"""Peak memory, of a step whose memory is known."""

import pytest
import torch

from roundoff.errors import CellError
from roundoff.training.experiment import Experiment
from roundoff.training.peak import peak_above_rest, peak_of

MIB = 1 << 20


@pytest.mark.parametrize("size", [32, 128])
def test_the_peak_is_what_was_held_at_once(size):
    def step():
        for _ in range(3):
            a = torch.ones(size * MIB // 4)
            b = a + 1
            del a, b

    step()
    assert peak_above_rest(step, "cpu") == pytest.approx(2 * size * MIB, rel=0.02)


def test_a_side_that_cannot_be_measured_is_one_line():
    with pytest.raises(CellError, match=r"^peak memory with fa3: .*no backward") as raised:
        peak_of(Experiment("text", "torch-math", ("fa3",)), "fa3")
    assert "\n" not in str(raised.value)
