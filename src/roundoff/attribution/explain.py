"""`explain`: which recipe a kernel follows, how sure that is at each site, what is left over."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from roundoff.attribution.residue import Residue, judge, measure_residue
from roundoff.attribution.search import Search, Standing
from roundoff.attribution.witness import Witness, witnesses
from roundoff.errors import KernelError, UsageError
from roundoff.formats import Format, get_format
from roundoff.kernels.user import function_kernel
from roundoff.operators import OPERATORS
from roundoff.operators.protocol import Label, Question
from roundoff.records import SubjectName
from roundoff.subjects import KernelSubject, RecipeSubject, Subject, resolve_subject

__all__ = ["Explanation", "SiteFinding", "explain", "explain_subject"]

Confidence = Literal["certain", "likely", "undecidable"]
FORMATS_TRIED = "bf16", "fp16", "fp32"
STARTS = 2
ALL_BITS = 0.9998
"""The mean share of bits that ends the search."""
HOPELESS = 0.8
"""A kernel of whose bits no more is found from a plain start is not in the space."""
FIRST = 2
"""So many groups of questions, those that are seen most easily, rank the starts."""
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

    @property
    def idle(self) -> bool:
        """Whether no bit depends on this site, as where P is not cast and l may see it or not."""
        return len(self.equals) == len(self.against) > 0

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
            "kernel": self.kernel, "operator": self.operator,
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


def explain(
    kernel: str | Callable[..., Any],
    *,
    operator: str = "attention",
    format: str | Format | None = None,
    seed: int = 0,
    threads: int = 1,
) -> Explanation:
    """Find the recipe that gives a kernel's bits, site by site, and judge what it leaves over.

    `kernel` is the name of a registered kernel, `module:function`, or a function: of q, k, v
    [batch, heads, length, head_dim] for attention, which may be declared with
    `roundoff.kernel`. It is called once on each of a few probes, and on natural inputs.
    `format` is that of the inputs; by default the first of bf16, fp16, fp32 that it takes. It
    runs on `threads` threads.

    Errors: `KernelError` if it takes none of the probes, or computes something else;
    `UnknownNameError` for names that are not known.

    >>> import torch
    >>> def softmax(x):
    ...     p = (x.float() - x.float().amax(-1, keepdim=True)).exp()
    ...     return (p / p.sum(-1, keepdim=True)).to(x.dtype)
    >>> found = explain(softmax, operator="softmax")
    >>> found.verdict, found.sites["divide"].choice
    ('explained by safe', 'division')
    """
    chosen = OPERATORS[operator]
    if isinstance(kernel, str):
        subject = resolve_subject(chosen, SubjectName.parse(kernel))
    else:
        subject = KernelSubject(chosen, function_kernel(kernel, operator))
    return explain_subject(subject, format=format, seed=seed, threads=threads)


def explain_subject(
    subject: Subject,
    *,
    format: str | Format | None = None,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 1,
    tell: Callable[[int], None] = lambda _: None,
) -> Explanation:
    """`explain` for a kernel that was looked up, on a device; what can be wrong is the same.

    `tell` is called with the number of recipes run so far.
    """
    if isinstance(subject, RecipeSubject):
        name = subject.recipe.name
        raise UsageError(f"recipe:{name} is a recipe, which explains itself; expected a kernel")
    with _on(threads):
        format, found = _asked(subject, format, seed=seed, device=device)
        search = Search(subject.operator, subject.operator.questions(format), found, tell)
        return _explained(subject, search, format, seed=seed, device=device)


@contextlib.contextmanager
def _on(threads: int) -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _explained(
    subject: KernelSubject, search: Search, format: Format, *, seed: int, device: str
) -> Explanation:
    name, recipe = subject.kernel.name, _best(search)
    sites = {q.name: _finding(search, recipe, q) for q in search.questions}
    near, changes = _nearest(search, sites)
    recipe = replace(recipe, name=f"explains-{name}", doc=f"what explains {name}", known="defined")
    residue = measure_residue(subject, recipe, format, seed, device=device)
    return Explanation(
        name, subject.operator.name, format, recipe, near, changes, sites,
        {w.probe.name: search.share(at, recipe) for at, w in enumerate(search.witnesses)},
        residue, judge(residue, in_words(near, changes)),
    )  # fmt: skip


def _asked(
    subject: KernelSubject, wanted: str | Format | None, *, seed: int, device: str
) -> tuple[Format, list[Witness]]:
    """The format, and what the kernel gives on its probes."""
    formats = FORMATS_TRIED if wanted is None else (wanted,)
    for format in map(get_format, formats):
        probes = subject.operator.probes(format, seed)
        found = witnesses(subject, probes, device=device)
        if found:
            return format, found
    name = subject.kernel.name
    raise KernelError(
        f"kernel {name!r} took none of the probes in {' or '.join(map(str, formats))}; "
        f"`roundoff bench --kernel {name}` shows why"
    )


def _best(search: Search) -> Any:
    """The best end of a climb: from the recipes of the catalogue that start best, and from a
    plain one; the first that gives all bits ends it."""
    easiest = search.groups()[:FIRST]
    known = [search.settled(recipe) for recipe in search.operator.recipes.values()]
    first, *others = sorted(known, key=lambda r: search.score(r, easiest), reverse=True)[:STARTS]
    plain = search.settled(type(first)(name="plain", doc=""))
    found: list[Any] = []
    for start in (first, plain, *others):
        found.append(search.climb(start))
        share = search.score(found[-1]) / len(search.witnesses)
        if share > ALL_BITS or (start is plain and share < HOPELESS):
            break
    return search.polish(max(found, key=search.score))


def _finding(search: Search, recipe: Any, question: Question) -> SiteFinding:
    standings = search.standings(recipe, question)
    equals = tuple(s.label for s in standings if s.differ == 0)
    sure = all(_is_clear(s) for s in standings)
    confidence: Confidence = "undecidable" if equals else "certain" if sure else "likely"
    return SiteFinding(question.doc, question.label(recipe), confidence, equals, tuple(standings))


def _is_clear(standing: Standing) -> bool:
    speak = standing.right + standing.rival
    return standing.right >= ENOUGH and standing.right >= CLEAR * speak


def _nearest(search: Search, sites: Mapping[str, SiteFinding]) -> tuple[str, dict[str, Label]]:
    """The recipe of the catalogue with the fewest other answers, and those answers.

    An answer that no bit can tell from the recipe's is no other answer.
    """

    def others(known: Any) -> dict[str, Label]:
        settled = search.settled(known)
        return {
            q.name: sites[q.name].choice
            for q in search.questions
            if q.label(settled) not in (sites[q.name].choice, *sites[q.name].equals)
        }

    recipes = search.operator.recipes
    differences = {name: others(known) for name, known in recipes.items()}
    near = min(
        differences,
        key=lambda n: (len(differences[n]), -search.score(search.settled(recipes[n]))),
    )
    return near, differences[near]
