"""Blocks that draw leave the numbers that come after them as they would have been."""

import contextlib
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roundoff.state.random_states import RandomStates, seeded, undrawn


def drawn():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()


@pytest.mark.parametrize("block", [undrawn, lambda: seeded(5)])
def test_a_block_is_not_seen_from_outside(block):
    states = RandomStates.here()
    expected = drawn()
    states.put_back()
    with block():
        drawn()
    assert drawn() == expected
    states.put_back()
    with contextlib.suppress(KeyboardInterrupt), block():
        drawn()
        raise KeyboardInterrupt
    assert drawn() == expected


@settings(max_examples=30)
@given(st.integers(-(2**70), 2**70))
def test_one_seed_gives_one_stream_and_another_seed_another(seed):
    found = []
    for one in (seed, seed, seed + 1):
        with seeded(one):
            found.append(drawn())
    assert found[0] == found[1]
    assert all(a != b for a, b in zip(found[1], found[2], strict=True))


def test_the_streams_are_those_of_the_libraries_own_seeds():
    with seeded(7):
        found = drawn()
    with undrawn():
        torch.manual_seed(7)
        np.random.seed(7)
        random.seed(7)
        assert drawn() == found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_cuda_device():
    torch.rand(1, device="cuda")
    states = RandomStates.here()
    expected = torch.rand(3, device="cuda")
    states.put_back()
    with seeded(3):
        first = torch.rand(3, device="cuda")
    with seeded(3):
        assert torch.equal(torch.rand(3, device="cuda"), first)
    assert torch.equal(torch.rand(3, device="cuda"), expected)
