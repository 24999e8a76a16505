"""Shapley values of a game whose values are vectors: over all coalitions, or along sampled orders.

A game gives a coalition (a frozenset of players) its value, an array of any shape. Along one
order of the players the steps add up to the whole game's value exactly; so do their means.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Coalition", "Game", "Steps", "antithetic", "exact", "is_small", "prefixes", "steps"]

Coalition = frozenset[str]
Array = NDArray[np.float64]
Game = Callable[[Coalition], Array]
Steps = dict[str, Array]
"""What each player adds."""


def antithetic(players: Sequence[str], pairs: int, seed: int) -> list[tuple[str, ...]]:
    """`pairs` random orders, each followed by its reverse.

    A player that comes early in one comes late in the other, so that their mean varies less
    than that of two independent orders.

    >>> first, second = antithetic(["a", "b", "c"], 1, seed=0)
    >>> first == second[::-1]
    True
    """
    draw = random.Random(seed)
    orders: list[tuple[str, ...]] = []
    for _ in range(pairs):
        order = tuple(draw.sample(list(players), len(players)))
        orders += [order, order[::-1]]
    return orders


def prefixes(order: Sequence[str]) -> Iterator[Coalition]:
    """The coalitions that an order walks through, from nobody to everybody.

    >>> [sorted(c) for c in prefixes(["b", "a"])]
    [[], ['b'], ['a', 'b']]
    """
    for size in range(len(order) + 1):
        yield frozenset(order[:size])


def steps(order: Sequence[str], game: Game) -> Steps:
    """What each player adds when it joins those that come before it in `order`."""
    values = [game(coalition) for coalition in prefixes(order)]
    return {player: values[i + 1] - values[i] for i, player in enumerate(order)}


def exact(players: Sequence[str], game: Game) -> Steps:
    """The Shapley values over all 2^n coalitions.

    >>> found = exact(["a", "b"], lambda c: np.array(float(len(c)) ** 2))
    >>> {player: float(value) for player, value in found.items()}
    {'a': 2.0, 'b': 2.0}
    """
    return {player: _exact(player, players, game) for player in players}


def _exact(player: str, players: Sequence[str], game: Game) -> Array:
    others = [p for p in players if p != player]
    total = np.zeros_like(game(frozenset()))
    for size in range(len(players)):
        weight = 1.0 / (len(players) * math.comb(len(players) - 1, size))
        for chosen in combinations(others, size):
            before = frozenset(chosen)
            total = total + weight * (game(before | {player}) - game(before))
    return total


def is_small(players: int, permutations: int) -> bool:
    """Whether all coalitions are no more than those that the permutations would visit.

    >>> is_small(6, permutations=16), is_small(12, permutations=16)
    (True, False)
    """
    return 2**players <= 2 + permutations * max(0, players - 1)
