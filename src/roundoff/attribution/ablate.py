"""`ablate`: each rounding site of a recipe restored to exact, and what that takes away.

Seeds are draws of the inputs, each with permutations of its own, so that they are independent
units and an interval over them holds the spread of both.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from roundoff.attribution.ablation import Ablation
from roundoff.attribution.coalitions import Coalitions
from roundoff.attribution.measured import Measured, against, kernel_outputs, measured, visits
from roundoff.attribution.shapley import is_small
from roundoff.attribution.subject import ablated
from roundoff.attribution.summary import output_shares
from roundoff.attribution.sweep import Swept, beside_sites, sweep
from roundoff.errors import GoldenError, UnknownNameError, UnsupportedError, UsageError
from roundoff.formats import Format, get_format
from roundoff.metrics import GOLDEN_MARGIN
from roundoff.operators import OPERATORS
from roundoff.operators.inputs import check_seed
from roundoff.operators.protocol import Operator, Outputs, Problem, Question, Value
from roundoff.subjects import KernelSubject

__all__ = ["Tell", "ablate"]

ROWS, SEEDS, PERMUTATIONS = 64, 4, 16
Tell = Callable[[int, int], None]
"""Told how many of how many steps are done."""


def ablate(
    subject: Any,
    /,
    *,
    operator: str = "attention",
    recipe: str | None = None,
    parameters: Mapping[str, Value] | None = None,
    format: str | Format = "bf16",
    seeds: int | Sequence[int] = SEEDS,
    rows: int | None = ROWS,
    permutations: int = PERMUTATIONS,
    outputs: Sequence[str] | None = None,
    questions: Sequence[Question] | None = None,
    tell: Tell | None = None,
) -> Ablation:
    """Which rounding site of a recipe causes which share of its deviation from golden.

    `subject` is a recipe or a kernel, by value or by name (`recipe:NAME` where a kernel has the
    name too), or a function, which is a kernel as in `explain`. A kernel is ablated through the
    recipe of its name, or through `recipe`, and what that does not explain is a part of its own.
    The squared error is summed over `rows` sampled rows (None: all) of inputs drawn by
    `parameters`, once for each of `seeds`; the Shapley values take `permutations` orders of the
    sites for each, or all coalitions where these are no more. `outputs` are those of the operator
    to take apart (default: all but statistics of rows). `questions` are choices without an exact
    one, whose answers are tried in turn (default: those of the operator that are not about a site).

    Raises `UnknownNameError` for unknown names, `UnsupportedError` where a recipe gives NaN or
    infinities or a kernel does not take the problem, `KernelError` where a kernel gives them,
    `GoldenError` for a format that float64 cannot judge, `UsageError` for a kernel without a
    recipe.

    >>> found = ablate("all-bf16", operator="softmax", parameters={"length": 64}, rows=8, seeds=2)
    >>> list(found.shares)[:2]
    ['row_sum', 'argument']
    >>> found.outputs["y"].closes < 1e-12
    True
    """
    chosen = OPERATORS[operator]
    storage = get_format(format) if isinstance(format, str) else format
    what = ablated(chosen, subject, recipe=recipe)
    draws = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    _check(storage, draws, permutations)
    given = dict(parameters or {})
    settled = chosen.settle(given if rows is None else {"rows": rows} | given)
    problems = [chosen.draw(settled, storage, seed) for seed in draws]
    _check_taken(what.kernel, problems[0])
    what = replace(what, recipe=chosen.settled(what.recipe, problems[0]))
    truths = [chosen.golden(problem)[0] for problem in problems]
    theirs = [
        None if what.kernel is None else kernel_outputs(what.kernel, problem, golden)
        for problem, golden in zip(problems, truths, strict=True)
    ]
    names = _names(chosen, truths[0], outputs)
    steps = _Steps(tell)
    games = [
        Coalitions(chosen, what.recipe, problem, golden, names, steps)
        for problem, golden in zip(problems, truths, strict=True)
    ]
    active = _active(games, steps)
    steps.expect(len(games) * visits(len(active), permutations))
    found = [
        _one(game, kernel, active, permutations, seed)
        for game, kernel, seed in zip(games, theirs, draws, strict=True)
    ]
    asked = chosen.questions(storage) if questions is None else questions
    swept = _swept(games, beside_sites(what.recipe, asked), steps)
    return Ablation(
        subject=what.name, recipe=what.recipe.name, operator=operator, format=storage.name,
        parameters=settled, seeds=draws, units="seeds" if len(draws) > 1 else "permutations",
        permutations=0 if is_small(len(active), permutations) else permutations,
        coalitions=sum(len(game.known) for game in games),
        outputs={
            name: output_shares(name, what.recipe, storage, found, at, truths[0][name].numel())
            for at, name in enumerate(names)
        },
        swept=tuple(swept), notes=what.notes,
    )  # fmt: skip


def _check_taken(kernel: KernelSubject | None, problem: Problem) -> None:
    if kernel is not None and (reason := kernel.refuses(problem)):
        raise UnsupportedError(f"kernel {kernel.kernel.name!r} does not take {reason}")


def _check(storage: Format, seeds: Sequence[int], permutations: int) -> None:
    if storage.eps <= GOLDEN_MARGIN * sys.float_info.epsilon:
        raise GoldenError(
            f"golden is float64 and cannot judge {storage.name}; choose a narrower format"
        )
    if not seeds:
        raise UsageError("seeds are []; expected at least one")
    for seed in seeds:
        check_seed(seed)
    if permutations < 2 or permutations % 2:
        raise UsageError(
            f"permutations are {permutations}; expected an even number of at least 2, "
            "since each is taken with its reverse"
        )


def _names(operator: Operator, golden: Outputs, asked: Sequence[str] | None) -> tuple[str, ...]:
    """The outputs to take apart: those asked for, or all that are no statistics of rows."""
    if asked is None:
        return tuple(name for name in golden if name not in operator.statistics)
    for name in asked:
        if name not in golden:
            raise UnknownNameError("output", name, golden)
    return tuple(asked)


def _active(games: Sequence[Coalitions], steps: _Steps) -> tuple[str, ...]:
    """The sites that change a bit on some problem, alone among all others or among none."""
    players = games[0].players
    steps.expect(2 * len(players))
    return tuple(site for site in players if not all(game.is_idle(site) for game in games))


def _one(
    game: Coalitions, kernel: Outputs | None, active: Sequence[str], permutations: int, seed: int
) -> Measured:
    recipe, _ = game.operator.run(game.recipe, game.problem)
    found = measured(game, active, permutations, seed, game.values(recipe))
    if kernel is None:
        return found
    return replace(found, against=against(game, kernel, recipe))


def _swept(
    games: Sequence[Coalitions], questions: Sequence[Question], steps: _Steps
) -> list[Swept]:
    steps.expect(len(games) * (1 + sum(len(q.answers) for q in questions)))
    problems = [(game.problem, game.golden) for game in games]
    one = games[0]
    return sweep(one.operator, one.recipe, questions, problems, one.names, tell=steps)


class _Steps:
    """Counts what is done, for a progress bar; the total grows as it becomes known."""

    def __init__(self, tell: Tell | None) -> None:
        self.done = self.total = 0
        self.tell = tell

    def expect(self, more: int) -> None:
        """From now on, so many more steps lie ahead."""
        self.total = self.done + more

    def __call__(self) -> None:
        self.done += 1
        if self.tell is not None:
            self.tell(min(self.done, self.total), self.total)
