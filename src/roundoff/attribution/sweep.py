"""Choices that have no exact one (tile, direction, rule of the maximum): each answer in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from roundoff.attribution.coalitions import ERROR, GAIN, figures
from roundoff.errors import UnsupportedError, UsageError
from roundoff.metrics import Interval, ratio_interval, t_interval
from roundoff.operators.protocol import Operator, Outputs, Problem
from roundoff.sites import rewritten

__all__ = ["Answer", "Question", "Swept", "answered", "sweep"]


class Answer(Protocol):
    """A label, and the fields of a recipe that it sets."""

    @property
    def label(self) -> str:
        """Its name among the answers."""
        ...

    @property
    def changes(self) -> Mapping[str, Any]:
        """Dotted paths of fields, and what they become."""
        ...


class Question(Protocol):
    """One choice of a recipe, with its answers."""

    @property
    def name(self) -> str:
        """The name of the choice."""
        ...

    @property
    def doc(self) -> str:
        """What it is."""
        ...

    @property
    def answers(self) -> Sequence[Answer]:
        """What kernels do there."""
        ...


@dataclass(frozen=True, slots=True)
class Swept:
    """One answer: squared error over the recipe's own, and gain, of each output.

    `same` says that the answer is what the recipe does already, bit for bit; `refused` why it
    cannot be followed, with no numbers then.
    """

    question: str
    answer: str
    same: bool
    ratios: Mapping[str, Interval]
    gains: Mapping[str, Interval]
    refused: str = ""


def answered(recipe: Any, answer: Answer) -> Any:
    """The recipe with an answer's fields put in."""
    return rewritten(recipe, answer.changes)


def sweep(
    operator: Operator,
    recipe: Any,
    questions: Sequence[Question],
    problems: Sequence[tuple[Problem, Outputs]],
    names: tuple[str, ...],
    tell: Callable[[], None] = lambda: None,
) -> list[Swept]:
    """Every answer to every question, each alone, on problems with their golden outputs."""

    def run(other: Any) -> list[Any]:
        found: list[Any] = []
        for problem, golden in problems:
            found.append(figures(golden, operator.run(other, problem)[0], names))
            tell()
        return found

    swept: list[Swept] = []
    own = run(recipe) if questions else []
    for question in questions:
        for answer in question.answers:
            try:
                found = run(answered(recipe, answer))
            except (UnsupportedError, UsageError) as error:
                swept.append(Swept(question.name, answer.label, False, {}, {}, str(error)))
                continue
            swept.append(_compared(question, answer, names, own, found))
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
