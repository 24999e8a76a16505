"""`explain`: which recipe a kernel follows, how sure that is at each site, what is left over."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from roundoff.attribution.residue import Natural, Residue, judge, measure_residue, natural
from roundoff.attribution.search import Search, Standing
from roundoff.attribution.witness import Witness, witnesses
from roundoff.errors import KernelError, UsageError
from roundoff.formats import Format, get_format
from roundoff.kernels.user import function_kernel
from roundoff.operators import OPERATORS
from roundoff.operators.inputs import check_seed
from roundoff.operators.protocol import Label, Question
from roundoff.records import SubjectName
from roundoff.subjects import KernelSubject, RecipeSubject, Subject, resolve_subject

__all__ = ["Explanation", "SiteFinding", "explain", "explain_subject"]

Confidence = Literal["certain", "likely", "undecidable"]
FORMATS_TRIED = "bf16", "fp16", "fp32"
"""Those that the probes are laid out in: narrower ones cannot hold them, and of fp64 golden, which
is float64, is no judge."""
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
    Of a kernel that computes something else `sites` and `probes` are empty: it is held against
    one recipe, and none is looked for. `notes` say which formats were tried before, and why not.
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
    notes: tuple[str, ...] = ()

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
            "notes": list(self.notes),
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

    Errors: `KernelError` if it takes none of the probes; `UnknownNameError` for names that are not
    known, and `UsageError` for another format, for a seed below 0 and for no threads.

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
    elif callable(kernel):
        subject = KernelSubject(chosen, function_kernel(kernel, operator))
    else:
        raise UsageError(f"cannot explain {kernel!r}: expected a function or a name")
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
    check_seed(seed)
    if threads < 1:
        raise UsageError(f"threads are {threads}: expected at least 1")
    with _on(threads):
        format, found, notes = _asked(subject, format, seed=seed, device=device)
        seen = natural(subject, format, seed, device=device)
        if seen.another:
            return _hopeless(subject, seen, notes)
        search = Search(subject.operator, subject.operator.questions(format), found, tell)
        return _explained(subject, search, seen, notes)


@contextlib.contextmanager
def _on(threads: int) -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _hopeless(subject: KernelSubject, seen: Natural, notes: tuple[str, ...]) -> Explanation:
    """A kernel that computes something else, beside the first recipe of the catalogue."""
    recipe = next(iter(subject.operator.recipes.values()))
    residue = measure_residue(subject, recipe, seen)
    return Explanation(
        subject.kernel.name, subject.operator.name, seen.problem.format, recipe, recipe.name, {},
        {}, {}, residue, seen.another, notes,
    )  # fmt: skip


def _explained(
    subject: KernelSubject, search: Search, seen: Natural, notes: tuple[str, ...]
) -> Explanation:
    name, recipe = subject.kernel.name, _best(search)
    sites = {q.name: _finding(search, recipe, q) for q in search.questions}
    near, changes = _nearest(search, sites)
    recipe = replace(recipe, name=f"explains-{name}", doc=f"what explains {name}", known="defined")
    residue = measure_residue(subject, recipe, seen)
    return Explanation(
        name, subject.operator.name, seen.problem.format, recipe, near, changes, sites,
        {w.probe.name: search.share(at, recipe) for at, w in enumerate(search.witnesses)},
        residue, judge(residue, in_words(near, changes)), notes,
    )  # fmt: skip


def _asked(
    subject: KernelSubject, wanted: str | Format | None, *, seed: int, device: str
) -> tuple[Format, list[Witness], tuple[str, ...]]:
    """The format, what the kernel gives on its probes, and why not in the formats before it."""
    name = subject.kernel.name
    wrong: dict[str, str] = {}
    for format in _formats(wanted):
        found, why = witnesses(subject, subject.operator.probes(format, seed), device=device)
        if found:
            return format, found, tuple(f"not in {f}: {said}" for f, said in wrong.items())
        wrong[format.name] = why.removeprefix(f"kernel {name!r} ")
    said = "; ".join(dict.fromkeys(wrong.values()))
    raise KernelError(f"kernel {name!r} took none of the probes in {' or '.join(wrong)}: {said}")


def _formats(wanted: str | Format | None) -> list[Format]:
    if wanted is None:
        return [get_format(name) for name in FORMATS_TRIED]
    format = get_format(wanted)
    if format.name not in FORMATS_TRIED:
        raise UsageError(
            f"cannot explain in {format.name}: the probes come in {', '.join(FORMATS_TRIED)}, "
            "since narrower formats cannot hold them, and golden cannot judge fp64"
        )
    return [format]


def _best(search: Search) -> Any:
    """The best end of a climb: from the recipes of the catalogue that start best, and from a
    plain one; the first that gives all bits ends it."""
    easiest = search.groups()[:FIRST]
    known = [search.settled(recipe) for recipe in search.operator.recipes.values()]
    first, *others = search.top(STARTS, known, easiest)
    plain = search.settled(type(first)(name="plain", doc=""))
    found: list[Any] = []
    for start in (first, plain, *others):
        found.append(search.climb(start))
        share = search.score(found[-1]) / len(search.witnesses)
        if share > ALL_BITS or (start is plain and share < HOPELESS):
            break
    return search.polish(search.best(found))


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

    differences = {name: others(known) for name, known in search.operator.recipes.items()}
    fewest = min(map(len, differences.values()))
    settled = {
        name: search.settled(search.operator.recipes[name])
        for name, changes in differences.items() if len(changes) == fewest
    }  # fmt: skip
    best = search.best(settled.values())
    near = next((n for n, recipe in settled.items() if recipe == best), next(iter(settled)))
    return near, differences[near]
