"""Search a space of recipes for the one that gives a kernel's bits on the probes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from roundoff.attribution.witness import Witness, same
from roundoff.errors import UnsupportedError, UsageError
from roundoff.operators.protocol import Answer, Label, Operator, Question
from roundoff.sites import rewritten

__all__ = ["Search", "Standing"]

ROUNDS = 5
BUDGET = 3_000
"""Runs of a recipe on a probe in one climb; more says that the kernel is not in the space."""
ROUNDED = 1e-9
"""More than the rounding of a sum of shares, and less than one element is of any probe."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The best recipe beside its best rival with another answer: elements in which each is right.

    Only elements in which the two differ count; both are wrong in the rest of `differ`.
    """

    label: Label
    differ: int
    right: int
    rival: int


@dataclass
class Search:
    """The space of an operator's questions, searched group by group.

    `tell` is called with the number of recipes run so far.
    """

    operator: Operator
    questions: Sequence[Question]
    witnesses: Sequence[Witness]
    tell: Callable[[int], None] = lambda _: None
    _scores: dict[tuple[int, Any], float] = field(default_factory=dict[tuple[int, Any], float])
    _held: dict[int, tuple[Any, Tensor]] = field(default_factory=dict[int, tuple[Any, Tensor]])

    def settled(self, recipe: Any) -> Any:
        """A recipe as it stands on the first probe, with its tile put in: where a climb begins."""
        return self.operator.settled(recipe, self.witnesses[0].problem)

    def outputs(self, recipe: Any, witness: Witness) -> Tensor:
        """What `recipe` gives on a probe; raises `UnsupportedError` if it cannot."""
        outputs, _ = self.operator.run(recipe, witness.problem)
        return outputs[self.operator.outputs[0]].double()

    def score(self, recipe: Any, groups: Iterable[str] | None = None) -> float:
        """Shares of the kernel's bits, summed over the probes that show the groups; -1: cannot run.

        Every probe counts alike, however many elements it has.
        """
        total = 0.0
        for at in self._showing(groups):
            share = self.share(at, recipe)
            if share < 0:
                return -1.0
            total += share
        return total

    def best(self, recipes: Iterable[Any], groups: Iterable[str] | None = None) -> Any:
        """The first recipe of the highest score; None if there are none, or none can run."""
        return next(iter(self.top(1, recipes, groups)), None)

    def top(
        self, count: int, recipes: Iterable[Any], groups: Iterable[str] | None = None
    ) -> list[Any]:
        """The recipes of the highest scores, in their order; of equal ones, the first.

        A recipe is run on no further probe once it cannot be among them.
        """
        showing = self._showing(groups)
        found: list[tuple[float, Any]] = []
        for recipe in recipes:
            least = found[-1][0] if len(found) == count else -1.0
            if self._may_exceed(least, recipe, showing):
                found.append((self.score(recipe, groups), recipe))
                found = sorted(found, key=lambda pair: -pair[0])[:count]
        return [recipe for _, recipe in found]

    def _showing(self, groups: Iterable[str] | None) -> list[int]:
        wanted = None if groups is None else set(groups)
        return [
            at for at, witness in enumerate(self.witnesses)
            if wanted is None or wanted & set(witness.probe.groups)
        ]  # fmt: skip

    def _may_exceed(self, score: float, recipe: Any, showing: Sequence[int]) -> bool:
        """Run probes until it is known: those first that were run before, then the small ones."""
        most = float(len(showing))
        for at in sorted(showing, key=lambda at: (self._is_new(at, recipe), self._size(at))):
            if most <= score + ROUNDED:
                return False
            share = self.share(at, recipe)
            if share < 0:
                return False
            most -= 1 - share
        return most > score + ROUNDED

    def _is_new(self, at: int, recipe: Any) -> bool:
        return (at, recipe) not in self._scores

    def _size(self, at: int) -> int:
        return sum(x.numel() for x in self.witnesses[at].problem.inputs.values())

    def share(self, at: int, recipe: Any) -> float:
        """The share of the kernel's bits that `recipe` gives on one probe; -1: it cannot run."""
        key = at, recipe
        if key not in self._scores:
            self._scores[key] = self._measured(at, recipe)
            self.tell(len(self._scores))
        return self._scores[key]

    def _measured(self, at: int, recipe: Any) -> float:
        witness = self.witnesses[at]
        try:
            return same(self.outputs(recipe, witness), witness.output).double().mean().item()
        except UnsupportedError:
            return -1.0

    def climb(self, recipe: Any) -> Any:
        """Answer group after group as the probes say, until nothing changes.

        A group is asked only when those before it are at rest, so that what is seen most
        easily is settled before rarer answers are tried on its account.
        """
        groups = self.groups()
        most = len(self._scores) + BUDGET
        for count in range(1, len(groups) + 1):
            recipe = self._rest(recipe, groups[:count], most)
        return recipe

    def polish(self, recipe: Any) -> Any:
        """Take the best rival at some question, where it gives more bits on all probes together.

        A climb looks at the probes of one group at a time; a few bits may speak elsewhere.
        """
        for _ in range(ROUNDS):
            rivals = [r for q in self.questions for _, r in self._rivals(recipe, q)]
            best = self.best((recipe, *rivals))
            if best == recipe:
                break
            recipe = best
        return recipe

    def _rest(self, recipe: Any, groups: Sequence[str], most: int) -> Any:
        for _ in range(ROUNDS):
            before = recipe
            for group in groups:
                if len(self._scores) > most:
                    return recipe
                recipe = self.best((recipe, *self.variants(recipe, group)), [group]) or recipe
            if recipe == before:
                break
        return recipe

    def groups(self) -> list[str]:
        """The groups of the questions, in their order."""
        return list(dict.fromkeys(q.group for q in self.questions))

    def variants(
        self, recipe: Any, group: str, *, fixed: Mapping[str, Answer] | None = None
    ) -> Iterator[Any]:
        """The recipe under every combination of answers in a group; `fixed` answers stay."""
        asked = [q for q in self.questions if q.group == group]
        choices = [(fixed[q.name],) if fixed and q.name in fixed else q.answers for q in asked]
        for answers in itertools.product(*choices):
            changes = {path: value for a in answers for path, value in a.changes.items()}
            try:
                yield rewritten(recipe, changes)
            except UsageError:
                continue

    def standings(self, recipe: Any, question: Question) -> list[Standing]:
        """The recipe against the best of those that answer the question otherwise."""
        ours = [self._kept(at, recipe) for at in range(len(self.witnesses))]
        return [self._standing(a, ours, rival) for a, rival in self._rivals(recipe, question)]

    def _rivals(self, recipe: Any, question: Question) -> Iterator[tuple[Label, Any]]:
        """The best recipe for every other answer, whatever it does in the rest of the group."""
        chosen = question.label(recipe)
        for answer in question.answers:
            if answer.label == chosen:
                continue
            rivals = self.variants(recipe, question.group, fixed={question.name: answer})
            best = self.best(rivals, [question.group])
            if best is not None:
                yield answer.label, best

    def _kept(self, at: int, recipe: Any) -> Tensor:
        """`outputs` of the recipe that all rivals are held to: run once on each probe."""
        if self._held.get(at, (None,))[0] != recipe:
            self._held[at] = recipe, self.outputs(recipe, self.witnesses[at])
        return self._held[at][1]

    def _standing(self, label: Label, ours: Sequence[Tensor], other: Any) -> Standing:
        differ = right = rival = 0
        for mine, witness in zip(ours, self.witnesses, strict=True):
            theirs = self.outputs(other, witness)
            apart = ~same(mine, theirs)
            differ += int(apart.sum())
            right += int((apart & same(mine, witness.output)).sum())
            rival += int((apart & same(theirs, witness.output)).sum())
        return Standing(label, differ, right, rival)
