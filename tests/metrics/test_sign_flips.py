"""The sign-flip null against all sign patterns; Holm's method against its definition."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roundoff.metrics.sign_flips import flip_tail, holm, persistence

FACTOR = 2.2
"""The tail found is at no place less than the true one by more."""

BLOCKS = 15


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def decaying(n):
    return torch.logspace(0, -2, n, dtype=torch.float64)[:, None]


def loud(n):
    return torch.tensor([5.0] * 4 + [1.0] * (n - 4), dtype=torch.float64)[:, None]


VECTORS = {
    "one direction": lambda n, seed: normal(n, 1, seed=seed),
    "two directions": lambda n, seed: normal(n, 2, seed=seed),
    "ten directions": lambda n, seed: normal(n, 10, seed=seed),
    "nearly orthogonal": lambda n, seed: normal(n, 10_000, seed=seed),
    "drift": lambda n, seed: normal(n, 30, seed=seed) + 0.5,
    "nearly equal": lambda n, seed: normal(n, 10_000, seed=seed) + 0.5,
    "equal": lambda n, seed: torch.ones(n, 1, dtype=torch.float64),
    "falling 100-fold": lambda n, seed: normal(n, 30, seed=seed) * decaying(n),
    "falling in one direction": lambda n, seed: decaying(n),
    "four loud ones": lambda n, seed: normal(n, 10, seed=seed) * loud(n),
    "heavy tails": lambda n, seed: normal(n, 5, seed=seed) / normal(n, 1, seed=seed + 9).abs(),
}


def flipped(gram, signs):
    return gram * signs[:, None] * signs[None]


def all_signs(n):
    """Half of the patterns: the other half has them all turned, and the same sums."""
    rest = torch.tensor([*itertools.product([1.0, -1.0], repeat=n - 1)], dtype=torch.float64)
    return torch.cat([torch.ones(len(rest), 1, dtype=torch.float64), rest], 1)


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tail_against_all_sign_patterns(name, seed):
    s, signs = VECTORS[name](BLOCKS, seed), all_signs(BLOCKS)
    gram = s @ s.T
    norms = ((signs @ gram) * signs).sum(1)
    order = norms.argsort(descending=True)
    for tail in (1e-2, 1e-3, 1e-4):
        seen = order[max(int(tail * len(order)), 1)]
        exact = (norms >= norms[seen] * (1 - 1e-12)).double().mean().item()
        assert flip_tail(flipped(gram, signs[seen])) > exact / FACTOR
    assert flip_tail(flipped(gram, signs[order[-1]])) == 1  # the least of all sums


@pytest.mark.parametrize("name", VECTORS)
def test_tail_of_37_blocks_against_random_signs(name):
    s, draws = VECTORS[name](37, 3), 200_000
    signs = 2.0 * torch.randint(2, (draws, 37), generator=torch.Generator().manual_seed(0)) - 1
    norms = (signs.double() @ s).square().sum(1) if s.shape[1] < 40 else None
    if norms is None:
        gram = s @ s.T
        norms = ((signs.double() @ gram) * signs).sum(1)
    order = norms.argsort(descending=True)
    for tail, noise in ((1e-2, 1.1), (1e-3, 1.3), (1e-4, 2.0)):  # the draws' own, 4 sigma
        seen = order[int(tail * draws)]
        assert flip_tail(flipped(s @ s.T, signs[seen].double())) > tail / noise / FACTOR


@pytest.mark.parametrize("name", ["one direction", "ten directions", "drift"])
def test_tail_is_of_use(name):
    """Nor is it so careful that nothing is found: within 8 of the truth at 1e-3."""
    s, signs = VECTORS[name](BLOCKS, 0), all_signs(BLOCKS)
    norms = ((signs @ (s @ s.T)) * signs).sum(1)
    seen = norms.argsort(descending=True)[int(1e-3 * len(norms))]
    assert flip_tail(flipped(s @ s.T, signs[seen])) < 8e-3


def test_tail_does_not_change_with_the_unit():
    s = normal(30, 5) + 0.4
    tails = [flip_tail(unit**2 * s @ s.T) for unit in (1e-30, 1.0, 1e30)]
    assert tails == pytest.approx([tails[1]] * 3, rel=1e-6)
    assert 1e-9 < tails[1] < 0.5


@pytest.mark.parametrize("blocks", [2, 5, 24, 64])
def test_tail_is_never_below_the_share_that_leaves_the_sum(blocks):
    assert flip_tail(torch.ones(blocks, blocks, dtype=torch.float64)) >= 2.0 ** (1 - blocks)


@pytest.mark.parametrize(
    "gram", [torch.zeros(0, 0), torch.ones(1, 1), torch.zeros(9, 9), torch.eye(9)]
)
def test_nothing_to_tell(gram):
    assert flip_tail(gram.double()) == 1


@given(n=st.integers(1, 60), size=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_persistence_by_its_definition(n, size, seed):
    x = normal(n, size, seed=seed)
    wanted = x.sum(0).norm() / x.square().sum().sqrt()
    assert persistence(x @ x.T, x.square().sum().item()) == pytest.approx(wanted.item(), rel=1e-6)


def test_persistence_of_nothing_and_of_a_constant():
    assert math.isnan(persistence(torch.zeros(3, 3), 0.0))
    assert persistence(torch.ones(25, 25), 25.0) == 5


def by_definition(tails):
    """Holm (1979): reject in order while p_(k) <= alpha / (m - k + 1); as R's p.adjust."""
    order = sorted(range(len(tails)), key=lambda i: tails[i])
    found = [0.0] * len(tails)
    for k, i in enumerate(order):
        found[i] = max(min(1.0, (len(tails) - j) * tails[order[j]]) for j in range(k + 1))
    return found


@given(st.lists(st.floats(0, 1)))
def test_holm_by_its_definition(tails):
    assert holm(tails) == by_definition(tails)


def test_holm_counts_nan_as_1():
    assert holm([math.nan, 0.01]) == [1.0, 0.02]
    assert holm([]) == []
