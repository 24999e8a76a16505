"""Redrawn weights come back bit for bit, whatever they hold and however the block ends."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roundoff.training import redraw
from roundoff.training.redraw import INTEGERS, KEPT, MANTISSA, redrawn

DTYPES = [*MANTISSA]


def bits(w):
    return w.detach().view(INTEGERS[w.element_size()]).clone()


@settings(deadline=None, max_examples=100)
@given(
    dtype=st.sampled_from(DTYPES),
    patterns=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20),
    kept=st.integers(0, 60),
    seed=st.integers(0, 2**40),
)
def test_all_bit_patterns_come_back(dtype, patterns, kept, seed):
    """NaN with its payload, infinities, -0 and denormals among them."""
    size = 8 * torch.empty(0, dtype=dtype).element_size()
    small = [(p % 2**size) - (2**size if p % 2**size >= 2 ** (size - 1) else 0) for p in patterns]
    w = torch.tensor(small, dtype=INTEGERS[size // 8]).view(dtype)
    before = bits(w)
    with redrawn([w], kept=kept, seed=seed):
        flipped = bits(w) ^ before
        assert (flipped >= 0).all()  # never a sign
        assert (flipped < 1 << max(MANTISSA[dtype] - kept, 0)).all()
    assert torch.equal(bits(w), before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_move_by_at_most_the_bits_that_are_not_kept(dtype):
    w = torch.randn(5000, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = w.clone()
    with redrawn([w], kept=3, seed=0):
        moved = (w.double() / before.double() - 1).abs()
        assert 2**-5 < moved.max() <= 2**-3
        assert (w != before).double().mean() > 0.9
        assert torch.equal(w.sign(), before.sign())


def test_other_seeds_tensors_and_parts_move_otherwise(monkeypatch):
    monkeypatch.setattr(redraw, "CHUNK", 100)

    def drawn(seed):
        ones = [torch.ones(200), torch.ones(200)]
        with redrawn(ones, kept=KEPT, seed=seed):
            return [part.clone() for w in ones for part in w.split(100)]

    assert all(torch.equal(a, b) for a, b in zip(drawn(0), drawn(0), strict=True))
    every = drawn(0) + drawn(1)
    assert all(not torch.equal(a, b) for i, a in enumerate(every) for b in every[:i])


LAYOUTS = {
    "transposed": lambda: torch.randn(6, 5).T,
    "channels last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "strided": lambda: torch.randn(6, 10)[:, ::2],
    "scalar": lambda: torch.randn(()),
    "empty": lambda: torch.randn(0, 3),
    "integers": lambda: torch.arange(4),
    "complex": lambda: torch.randn(3, dtype=torch.complex64),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_any_layout(layout, chunk, monkeypatch):
    monkeypatch.setattr(redraw, "CHUNK", chunk)
    w = LAYOUTS[layout]()
    before = w.clone()
    with redrawn([w], kept=2, seed=0):
        assert torch.equal(w, before) == (layout in ("empty", "integers", "complex"))
    assert torch.equal(w, before)


def test_overlapping_weights_come_back():
    """Two parameters of one storage: flipped twice, and put back twice."""
    w = torch.randn(10)
    before = w.clone()
    with redrawn([w, w[2:], w.view(2, 5)], kept=6, seed=0):
        pass
    assert torch.equal(w, before)


def test_an_error_in_the_block_puts_them_back():
    w = torch.randn(10)
    before = w.clone()
    with pytest.raises(KeyboardInterrupt), redrawn([w], kept=6, seed=0):
        raise KeyboardInterrupt
    assert torch.equal(w, before)


def test_an_error_half_way_through_puts_back_what_was_flipped(monkeypatch):
    """Memory that runs out at the third of four weights."""
    weights = [torch.randn(10) for _ in range(4)]
    before, left = [w.clone() for w in weights], [2]
    flip = redraw._flip

    def failing(*part, seed):
        if left[0] == 0:
            left[0] = -1
            raise MemoryError
        left[0] -= 1
        flip(*part, seed=seed)

    monkeypatch.setattr(redraw, "_flip", failing)
    with pytest.raises(MemoryError), redrawn(weights, kept=6, seed=0):
        pass
    assert all(torch.equal(w, b) for w, b in zip(weights, before, strict=True))


def test_autograd_and_random_states_do_not_notice():
    w = torch.randn(4, requires_grad=True)
    version, state = w._version, torch.get_rng_state()
    with redrawn([w], kept=6, seed=0):
        pass
    assert w._version == version
    assert torch.equal(torch.get_rng_state(), state)
