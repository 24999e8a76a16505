"""Series of losses and gradient norms of which it is known where they spike.

Each kind is drawn from a seed: a falling loss or a level norm with honest noise, and what is put
into it. `spikes` are stretches of steps; a rule is right where it tells one step of a stretch.
"""

import math
from dataclasses import dataclass, field

import numpy as np

STEPS = 600


@dataclass
class Labelled:
    """A series, and the stretches [first, last] that are spikes."""

    kind: str
    values: list[float]
    spikes: list[tuple[int, int]] = field(default_factory=list)
    steps: list[int] | None = None

    @property
    def points(self):
        return list(zip(self.steps or range(len(self.values)), self.values, strict=True))


def loss(dice, noise=0.02):
    """From 10 to about 2, as a power of the step."""
    at = np.arange(STEPS)
    return (2 + 8 * (1 + at / 10) ** -0.7) * np.exp(noise * dice.standard_normal(STEPS))


def norm(dice, noise=0.2):
    """A gradient norm: log-normal about a level."""
    return np.exp(noise * dice.standard_normal(STEPS))


def places(dice, count, after=60, apart=80):
    first = np.sort(dice.choice((STEPS - after - 40) // apart, count, replace=False))
    return [int(after + apart * i + dice.integers(0, 20)) for i in first]


def lifted(dice, x, low, high):
    """Single steps, up by a factor."""
    at = places(dice, 3)
    for i in at:
        x[i] *= dice.uniform(low, high)
    return x, [(i, i) for i in at]


def single(dice):
    return lifted(dice, loss(dice), 1.6, 5)


def decaying(dice):
    """Up at once, and back in some ten steps."""
    x, at = loss(dice), places(dice, 2)
    for i in at:
        x[i : i + 40] *= 1 + dice.uniform(0.8, 3) * np.exp(-np.arange(40) / dice.uniform(3, 12))
    return x, [(i, i + 12) for i in at]


def climbing(dice):
    """Up over some steps, and down again."""
    x, at = loss(dice), places(dice, 2)
    for i in at:
        x[i - 4 : i + 5] *= 1 + dice.uniform(0.8, 3) * (1 - np.abs(np.arange(-4, 5)) / 5)
    return x, [(i - 4, i + 4) for i in at]


def diverging(dice):
    """One that never comes back."""
    x, at = loss(dice), int(dice.integers(200, 500))
    x[at:] *= 1 + 4 * (1 - np.exp(-np.arange(STEPS - at) / 5))
    return x, [(at, STEPS - 1)]


def norms(dice):
    return lifted(dice, norm(dice), 6, 100)


def not_finite(dice):
    x, at = loss(dice), places(dice, 2)
    for i in at:
        x[i] = dice.choice([math.nan, math.inf])
    return x, [(i, i) for i in at]


def honest(dice):
    return loss(dice, dice.uniform(0.005, 0.08)), []


def honest_norms(dice):
    """With a heavier tail, as small batches give: a t distribution of 6 degrees of freedom."""
    return np.exp(0.15 * dice.standard_t(6, STEPS)), []


def warm_up(dice):
    """A norm that rises tenfold and falls while the learning rate warms up."""
    at = np.arange(STEPS)
    return norm(dice, 0.1) * (1 + 9 * (at / 40) * np.exp(1 - at / 40)), []


def drift(dice):
    """A loss that rises slowly, by half in 600 steps."""
    return (2 + np.arange(STEPS) / STEPS) * np.exp(0.02 * dice.standard_normal(STEPS)), []


def another_level(dice):
    """From some step on the data are a fifth harder: no spike, as it stays."""
    x, at = loss(dice, 0.03), int(dice.integers(150, 500))
    x[at:] *= 1.12
    return x, []


def restart(dice):
    """Resumed from an earlier step, whose losses come again."""
    x, at = loss(dice), int(dice.integers(200, 500))
    back = at - int(dice.integers(20, 100))
    again = x[back:at] * np.exp(0.01 * dice.standard_normal(at - back))
    values = np.concatenate([x[:at], again, x[at:]])
    return values, [], [*range(at), *range(back, at), *range(at, STEPS)]


SPIKED = (single, decaying, climbing, diverging, norms, not_finite)
SOUND = (honest, honest_norms, warm_up, drift, another_level, restart)


def labelled(seeds):
    """Every kind once a seed."""
    for seed in seeds:
        for number, make in enumerate((*SPIKED, *SOUND)):
            values, spikes, *steps = make(np.random.default_rng([seed, number]))
            yield Labelled(make.__name__, values.tolist(), spikes, *steps)


def score(told, one):
    """Spikes that were told, spikes in all, false alarms: tellings within no stretch."""
    hit = sum(any(a <= at <= b for at in told) for a, b in one.spikes)
    false = sum(not any(a <= at <= b for a, b in one.spikes) for at in told)
    return hit, len(one.spikes), false
