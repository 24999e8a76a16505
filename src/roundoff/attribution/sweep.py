"""Choices that have no exact one (tile, direction, rule of the maximum): each answer in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from roundoff.attribution.coalitions import ERROR, GAIN, figures
from roundoff.errors import UnsupportedError, UsageError
from roundoff.metrics import Interval, ratio_interval, t_interval
from roundoff.operators.protocol import Answer, Label, Operator, Outputs, Problem, Question
from roundoff.sites import Sited, rewritten

__all__ = ["Swept", "beside_sites", "sweep"]


@dataclass(frozen=True, slots=True)
class Swept:
    """One answer: squared error over the recipe's own, and gain, of each output.

    `same` says that the answer gives the errors of the recipe as it is; `refused` why it cannot
    be followed, with no numbers then.
    """

    question: str
    answer: Label
    same: bool
    ratios: Mapping[str, Interval]
    gains: Mapping[str, Interval]
    refused: str = ""


def beside_sites(recipe: Sited, questions: Sequence[Question]) -> list[Question]:
    """The questions that are not about what happens at a site, which has an exact choice."""
    paths = tuple(place.path for place in recipe.SITES.values())

    def at_a_site(path: str) -> bool:
        return path in paths or path.startswith(tuple(f"{place}." for place in paths))

    return [
        question
        for question in questions
        if not any(at_a_site(path) for answer in question.answers for path in answer.changes)
    ]


def sweep(
    operator: Operator,
    recipe: Any,
    questions: Sequence[Question],
    problems: Sequence[tuple[Problem, Outputs]],
    names: tuple[str, ...],
    *,
    tell: Callable[[], None] = lambda: None,
) -> list[Swept]:
    """Every answer to every question, each alone, on problems with their golden outputs.

    A question whose answers change nothing is left out: its field has no meaning here.
    """

    def run(other: Any) -> list[Any]:
        found: list[Any] = []
        for problem, golden in problems:
            found.append(figures(golden, operator.run(other, problem)[0], names))
            tell()
        return found

    swept: list[Swept] = []
    own = run(recipe) if questions else []
    for question in questions:
        answers: list[Swept] = []
        for answer in question.answers:
            try:
                found = run(rewritten(recipe, answer.changes))
            except (UnsupportedError, UsageError) as error:
                answers.append(Swept(question.name, answer.label, False, {}, {}, str(error)))
                continue
            answers.append(_compared(question, answer, names, own, found))
        if not all(answer.same or answer.refused for answer in answers):
            swept += answers
    return swept


def _compared(
    question: Question, answer: Answer, names: tuple[str, ...], own: list[Any], found: list[Any]
) -> Swept:
    ratios = {
        name: ratio_interval([f[i, ERROR] for f in found], [o[i, ERROR] for o in own])
        for i, name in enumerate(names)
    }
    gains = {name: t_interval([f[i, GAIN] for f in found]) for i, name in enumerate(names)}
    same = all((f == o).all() for f, o in zip(found, own, strict=True))
    return Swept(question.name, answer.label, same, ratios, gains)
