"""`explain`: which recipe a kernel follows, how sure that is at each site, what is left over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from roundoff.attribution.residue import Residue, judge, measure_residue
from roundoff.attribution.search import Search, Standing
from roundoff.attribution.witness import Witness, witnesses
from roundoff.errors import KernelError
from roundoff.formats import Format
from roundoff.operators.protocol import Label, Operator
from roundoff.records import SCHEMA
from roundoff.subjects import Subject

__all__ = ["Explanation", "SiteFinding", "explain_subject"]

Confidence = Literal["certain", "likely", "undecidable"]
STARTS = 3
ALL_BITS = 0.9998
"""The mean share of bits that ends the search."""
ENOUGH = 8
"""Elements that must speak for an answer before it is certain."""
CLEAR = 0.9
"""The share of the elements that speak which must speak for a certain answer."""


@dataclass(frozen=True, slots=True)
class SiteFinding:
    """What was found out at one site.

    `choice` is the recipe's answer. It is `certain` if no other can stand beside it on the
    probes; `undecidable` if another, one of `equals`, gives the same bits on all of them;
    `likely` otherwise.
    """

    doc: str
    choice: Label
    confidence: Confidence
    equals: tuple[Label, ...] = ()
    against: tuple[Standing, ...] = ()

    def to_record(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "choice": self.choice, "confidence": self.confidence, "meaning": self.doc,
            "equals": list(self.equals),
            "against": [
                {"choice": s.label, "differ": s.differ, "right": s.right, "rival": s.rival}
                for s in self.against
            ],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Explanation:
    """The recipe that explains a kernel best, and how well.

    `near` is the recipe of the catalogue that is next to it, with the `sites` at which they
    differ in `changes`. Match, null, lift and order floor are shares of bits on natural inputs.
    """

    kernel: str
    operator: str
    format: Format
    recipe: Any
    near: str
    changes: Mapping[str, Label]
    sites: Mapping[str, SiteFinding]
    probes: Mapping[str, float]
    residue: Residue
    verdict: str

    @property
    def match(self) -> float:
        """The share of the kernel's bits that the recipe gives on natural inputs."""
        return self.residue.match

    @property
    def described(self) -> str:
        """The recipe in words: a row of the catalogue, and what is other than there."""
        return in_words(self.near, self.changes)

    def to_record(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "schema": SCHEMA, "kind": "explain", "kernel": self.kernel, "operator": self.operator,
            "format": self.format.name, "recipe": self.described, "near": self.near,
            "changes": dict(self.changes),
            "sites": {name: site.to_record() for name, site in self.sites.items()},
            **self.residue.to_record(), "probes": dict(self.probes), "verdict": self.verdict,
        }  # fmt: skip


def in_words(near: str, changes: Mapping[str, Label]) -> str:
    """A row of the catalogue, and what is other than there.

    >>> in_words("fa2", {"kv_tile": 64, "row_sum": "after"})
    'fa2 with kv_tile 64, row_sum after'
    """
    others = ", ".join(f"{name} {choice}" for name, choice in changes.items())
    return f"{near} with {others}" if others else near


def explain_subject(
    subject: Subject,
    operator: Operator,
    *,
    name: str,
    format: Format,
    seed: int = 0,
    tell: Callable[[int], None] = lambda _: None,
) -> Explanation:
    """Explain what runs behind `subject`, a kernel of `operator`, for inputs of `format`.

    The kernel is called once on each probe, and a few times on natural inputs; raises
    `KernelError` if it takes none of the probes.
    """
    found = witnesses(subject, operator, operator.probes(format, seed))
    if not found:
        raise KernelError(
            f"kernel {name!r} took none of the probes in {format.name}; "
            "measure it with `roundoff bench` to see why"
        )
    search = Search(operator, operator.questions(format), found, tell)
    recipe = _best(search, operator, found[0])
    sites = {q.name: _finding(search, recipe, q) for q in search.questions}
    near, changes = _nearest(search, operator, sites, found[0])
    recipe = replace(recipe, name=f"explains-{name}", doc=f"what explains {name}", known="defined")
    residue = measure_residue(subject, operator, recipe, format, seed)
    return Explanation(
        name, operator.name, format, recipe, near, changes, sites,
        {w.probe.name: search.share(at, recipe) for at, w in enumerate(found)},
        residue, judge(residue, in_words(near, changes)),
    )  # fmt: skip


def _best(search: Search, operator: Operator, witness: Witness) -> Any:
    """The best end of a climb: from the recipes of the catalogue that start best, and from a
    plain one; the first that gives all bits ends it."""
    known = [operator.settled(r, witness.problem) for r in operator.recipes.values()]
    first, *others = sorted(known, key=search.score, reverse=True)[:STARTS]
    plain = operator.settled(type(first)(name="plain", doc=""), witness.problem)
    found: list[Any] = []
    for start in (first, plain, *others):
        found.append(search.climb(start))
        if search.score(found[-1]) > ALL_BITS * len(search.witnesses):
            break
    return max(found, key=search.score)


def _finding(search: Search, recipe: Any, question: Any) -> SiteFinding:
    standings = search.standings(recipe, question)
    equals = tuple(s.label for s in standings if s.differ == 0)
    sure = all(_is_clear(s) for s in standings)
    confidence: Confidence = "undecidable" if equals else "certain" if sure else "likely"
    return SiteFinding(question.doc, question.label(recipe), confidence, equals, tuple(standings))


def _is_clear(standing: Standing) -> bool:
    speak = standing.right + standing.rival
    return standing.right >= ENOUGH and standing.right >= CLEAR * speak


def _nearest(
    search: Search, operator: Operator, sites: Mapping[str, SiteFinding], witness: Witness
) -> tuple[str, dict[str, Label]]:  # fmt: skip
    """The recipe of the catalogue with the fewest other answers, and those answers.

    An answer that no bit can tell from the recipe's is no other answer.
    """

    def others(known: Any) -> dict[str, Label]:
        settled = operator.settled(known, witness.problem)
        return {
            q.name: sites[q.name].choice
            for q in search.questions
            if q.label(settled) not in (sites[q.name].choice, *sites[q.name].equals)
        }

    differences = {name: others(known) for name, known in operator.recipes.items()}
    near = min(
        differences,
        key=lambda n: (
            len(differences[n]),
            -search.score(operator.settled(operator.recipes[n], witness.problem)),
        ),
    )
    return near, differences[near]
