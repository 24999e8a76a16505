"""Shapley values: the laws that define them, known games, and what sampled orders keep."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roundoff.attribution.shapley import antithetic, exact, is_small, prefixes, steps
from roundoff.metrics import t_interval

PLAYERS = ("a", "b", "c", "d", "e")


def table_game(seed, players=PLAYERS):
    """A game of whole numbers, two a coalition, so that sums are exact; and by hand."""
    draw = random.Random(seed)
    values = {
        frozenset(c): np.array([draw.randint(-99, 99), draw.randint(-99, 99)], dtype=float)
        for size in range(len(players) + 1)
        for c in itertools.combinations(players, size)
    }
    return values.__getitem__


def by_all_orders(players, game):
    """The definition: the mean of what a player adds, over all n! orders."""
    orders = list(itertools.permutations(players))
    total = {player: np.zeros(2) for player in players}
    for order in orders:
        before = frozenset()
        for player in order:
            total[player] = total[player] + game(before | {player}) - game(before)
            before |= {player}
    return {player: value / len(orders) for player, value in total.items()}


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=20)
def test_all_coalitions_are_the_mean_over_all_orders(seed):
    game = table_game(seed)
    expected = by_all_orders(PLAYERS, game)
    for player, value in exact(PLAYERS, game).items():
        assert value == pytest.approx(expected[player], abs=1e-9)


def test_the_glove_game():
    """One left and two right gloves: the left one is worth 2/3 (Shapley, 1953)."""

    def game(c):
        return np.array([1.0 if "left" in c and len(c) > 1 else 0.0])

    found = exact(["left", "right", "other"], game)
    assert found["left"][0] == pytest.approx(2 / 3)
    assert found["right"][0] == found["other"][0] == pytest.approx(1 / 6)


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=20)
def test_along_every_order_the_steps_add_up_exactly(seed):
    game = table_game(seed)
    for order in antithetic(PLAYERS, 3, seed):
        total = sum(steps(order, game).values())
        assert (total == game(frozenset(PLAYERS)) - game(frozenset())).all()


def test_whoever_adds_nothing_gets_nothing_along_every_order():
    inner = table_game(1)

    def game(c):
        return inner(c - {"c"})

    assert all((steps(order, game)["c"] == 0).all() for order in antithetic(PLAYERS, 8, 0))
    assert (exact(PLAYERS, game)["c"] == 0).all()


def test_who_can_stand_for_each_other_get_the_same():
    inner = table_game(2)

    def game(c):  # a and b are the same to the game, also together
        count = len(c & {"a", "b"})
        return inner(c - {"a", "b"}) * (1 + count) + count**2

    found = exact(PLAYERS, game)
    assert found["a"] == pytest.approx(found["b"])
    assert found["a"] != pytest.approx(found["c"])


def test_two_games_added_up_give_the_sum():
    one, other = table_game(3), table_game(4)
    both = exact(PLAYERS, lambda c: one(c) + other(c))
    for player in PLAYERS:
        apart = exact(PLAYERS, one)[player] + exact(PLAYERS, other)[player]
        assert both[player] == pytest.approx(apart)


def test_an_order_and_its_reverse_are_exact_for_what_pairs_do():
    """Of each two players one comes first in one order and the other in its reverse."""
    draw = random.Random(5)
    weight = {frozenset(c): draw.randint(-9, 9) for n in (1, 2)
              for c in itertools.combinations(PLAYERS, n)}  # fmt: skip

    def game(c):
        return np.array([float(sum(w for part, w in weight.items() if part <= c))])

    expected = exact(PLAYERS, game)
    first, second = (steps(order, game) for order in antithetic(PLAYERS, 1, 6))
    for player in PLAYERS:
        assert (first[player] + second[player]) / 2 == pytest.approx(expected[player])


def test_orders_are_permutations_and_drawn_by_the_seed():
    orders = antithetic(PLAYERS, 5, seed=7)
    assert len(orders) == 10
    assert all(sorted(order) == sorted(PLAYERS) for order in orders)
    assert orders == antithetic(PLAYERS, 5, seed=7)
    assert orders != antithetic(PLAYERS, 5, seed=8)
    assert list(prefixes(("x",))) == [frozenset(), frozenset({"x"})]


def test_intervals_over_pairs_of_orders_cover_the_value():
    """95 % intervals over 12 pairs, 200 times: at least 180 hold what all coalitions give."""
    game = table_game(9)
    expected = exact(PLAYERS, game)["b"][0]
    held = 0
    for seed in range(200):
        walks = [steps(order, game)["b"][0] for order in antithetic(PLAYERS, 12, seed)]
        pairs = [(a + b) / 2 for a, b in zip(walks[::2], walks[1::2], strict=True)]
        held += expected in t_interval(pairs)
    assert 180 <= held < 200


def test_few_players_are_worked_out_whole():
    assert is_small(0, 2)
    assert is_small(1, 2)
    assert not is_small(20, 1000)
