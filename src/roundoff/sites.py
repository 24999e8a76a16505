"""Sites: named places at which a kernel rounds, and what a kernel may do there.

Everything here is a frozen value without arithmetic; `roundoff.operators.arithmetic` and
`roundoff.operators.exponentials` carry the choices out. A recipe of any operator is built
from these, and gets its sites from `Sited`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeVar, cast

from roundoff.errors import UnknownNameError
from roundoff.formats import FORMATS, Format

__all__ = [
    "INPUT",
    "OPMATH",
    "Accumulator",
    "ByStorage",
    "Choice",
    "Element",
    "Exponential",
    "Place",
    "Quantizer",
    "Site",
    "Sited",
    "deciding_fields",
    "reordered",
    "resolve",
    "rewritten",
    "wire",
]

FP64, FP32 = FORMATS["fp64"], FORMATS["fp32"]
FORMAT_ALTERNATIVES = (FP64, FP32, FORMATS["bf16"], FORMATS["fp16"])

INPUT: Literal["input"] = "input"
"""Stands for the storage format of the call's inputs, until `resolve` puts it in."""

Choice = Any
"""What a kernel does at a site: a `Format`, an `Accumulator`, a `Quantizer`, the name of an
approximation, or a frozen value of the operator's own."""


@dataclass(frozen=True, slots=True)
class ByStorage:
    """One choice for inputs of up to 16 bits, one for up to 32, and one for wider ones.

    Many kernels have a fast path for 16 bits, and compute float64 inputs in float64.
    """

    narrow: Choice
    single: Choice
    double: Choice

    def at(self, storage: Format) -> Choice:
        """The choice for inputs that are stored in `storage`."""
        if storage.bits <= 16:
            return self.narrow
        return self.single if storage.bits <= 32 else self.double


OPMATH = ByStorage(FP32, FP32, FP64)
"""The usual format of intermediate results: fp32, and fp64 for inputs beyond 32 bits."""

Element = Format | Literal["input"] | ByStorage
Order = Literal[
    "library", "reversed", "fused", "native", "lanes", "vector", "softmax", "unordered"
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Accumulator:
    """How a sum is carried: of a matrix product over its inner axis, or of a row.

    `format` is what the running value is stored in; `chunk` how many terms are added
    between two such roundings (None: all of them, one rounding at the end). `rounding`
    is how: tensor cores are known to cut off (`toward-zero`).

    `rounds` says what is rounded when the running value is rescaled and added to: every
    `operation` (the rescaled value, what is added, and their sum), or the `update` once, as
    `acc = (acc * alpha + p @ v).to(bf16)` does.

    `aligned` adds a product's chunks as tensor cores do: the terms and the running value are cut
    off at the last bit that `format` has for the largest of them, and then added exactly.
    `flushed` is the format of another running value, to which a matrix product's own (the sum
    of one tile) is added at its end; `format` is then carried for a tile alone.

    `order` is the order of additions:

    - `library`: a product's as torch's routine for the carrying dtype does it on this machine;
      a row's as 64 lanes side by side: the row is filled up with -0 to whole groups of 64, the
      later half of the groups is added onto the earlier until one is left, and so are its
      lanes (of an odd number of groups the middle one is left for the next turn);
    - `reversed`: the same on the terms from last to first;
    - `fused`: products only; the same, starting from the running value, not from zero;
    - `native`: products only; torch's own routine for tensors of `format` (a 16-bit GEMM),
      or `library` where another choice has left the operands wider than that;
    - `lanes`: rows only; `lanes` partial sums side by side, then halves onto halves, then
      the tail one by one;
    - `vector`: rows only; the same, but the tail goes to the first lanes before these are
      added up, and a row with fewer terms than lanes is summed one by one;
    - `softmax`: attention's rows only; whatever `torch.softmax` does (`library` where another
      choice has taken its exponential away);
    - `unordered`: sums over tiles only; the tiles are added in an order drawn from `seed`, as
      atomic additions do.
    """

    format: Element = OPMATH
    chunk: int | None = None
    order: Order | ByStorage = "library"
    rounding: Literal["nearest", "toward-zero"] = "nearest"
    lanes: int | ByStorage = 16
    rounds: Literal["operation", "update"] = "operation"
    aligned: bool = False
    flushed: Element | None = None
    seed: int = 0

    @property
    def inner(self) -> Accumulator:
        """How the parts of an update are carried: unrounded if only the update rounds."""
        if self.flushed is not None:
            return Accumulator(self.flushed)
        return self if self.rounds == "operation" else dataclasses.replace(self, format=FP64)


@dataclass(frozen=True, slots=True)
class Quantizer:
    """How a tensor is put into a narrow format.

    `scale` says what is divided out first and multiplied back after the rounding, so that the
    largest magnitude becomes the format's maximum: `none`; one factor for the whole `tensor`;
    one for each `block` of `block` neighbours along `axis` (of one head, where there are heads);
    or one for every `line` along `axis` by itself, in pieces of `block` (None: the whole line).
    `fixed` divides by nothing. Before all that, values are multiplied by `factor`.

    `scales` is how a scale is stored: rounded to a format, or as a power of two (e8m0), either
    `power`, 2^(floor(log2 largest) - emax) as OCP's microscaling formats have it, under which what
    lies beyond the format's maximum saturates; or `power-up`, the least one under which nothing
    does. `two_level` divides the scales of blocks by one fp32 scale of the tensor first, so that
    the largest becomes the maximum of `scales` (NVFP4).

    `flush` turns results below the element's normal numbers into zeros.
    """

    element: Element
    scale: Literal["none", "fixed", "tensor", "block", "line"] = "none"
    factor: float = 1.0
    block: int | None = None
    axis: int = -2
    scales: Element | Literal["power", "power-up"] = FP32
    two_level: bool = False
    flush: bool = False


@dataclass(frozen=True, slots=True)
class Exponential:
    """Base and approximation of exp, and the formats of its argument and its result.

    In base 2 the factor log2(e) goes onto the `argument` in a multiplication of its own, or
    into the `scale`, wherever that is applied.
    `approximation` names a row of `operators.exponentials.EXPONENTIALS`; `scalar` names another
    for what a kernel computes value by value: the factor that rescales earlier tiles, and the
    last `row length mod tail` columns of a tile, which a vectorised loop leaves over.
    `columns` (n, k): only the last k of every n columns of a tile take the approximation.
    """

    base: Literal["e", "2"] = "e"
    log2e: Literal["argument", "scale"] = "argument"
    approximation: str | ByStorage = "exact"
    scalar: str = "exact"
    tail: int | ByStorage | None = None
    argument: Element = OPMATH
    format: Element = OPMATH
    columns: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Site:
    """A named place at which a kernel rounds.

    `choice` is what this recipe does there; `alternatives` are the other choices that
    are meaningful; the first of them is the exact one, which takes the site's
    rounding away.
    """

    name: str
    doc: str
    choice: Choice
    alternatives: tuple[Choice, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a recipe a site's choice stands: a dotted path, what it rounds, alternatives.

    `alternatives` empty: those that follow from the choice's type.
    """

    path: str
    doc: str
    alternatives: tuple[Choice, ...] = ()


class Sited:
    """The base of every operator's recipe, a frozen dataclass: sites read off a table."""

    __slots__ = ()
    SITES: ClassVar[Mapping[str, Place]]

    def sites(self) -> tuple[Site, ...]:
        """The places at which this recipe rounds or may round, in the order of the data."""
        places = ((name, place) for name, place in self.SITES.items() if _has(self, place))
        return tuple(_site(self, name, place) for name, place in places)

    def choose(self, choices: Mapping[str, Choice]) -> Self:
        """The same recipe with other choices at the named sites."""
        for name in choices:
            if name not in self.SITES or not _has(self, self.SITES[name]):
                raise UnknownNameError("site", name, [site.name for site in self.sites()])
        return rewritten(self, {self.SITES[n].path: choice for n, choice in choices.items()})

    @property
    def wide(self) -> bool:
        """Whether some site asks for more than fp32 can hold; for a resolved recipe."""
        return any(_is_wide(site.choice) for site in self.sites())


_R = TypeVar("_R", bound=Sited)
_F = TypeVar("_F")


def _has(recipe: Sited, place: Place) -> bool:
    """Whether the part of the recipe that holds the place is there at all."""
    part: Choice = recipe
    for step in place.path.split(".")[:-1]:
        part = getattr(part, step)
        if part is None:
            return False
    return True


def _site(recipe: Sited, name: str, place: Place) -> Site:
    choice: Choice = recipe
    for step in place.path.split("."):
        choice = getattr(choice, step)
    return Site(name, place.doc, choice, place.alternatives or _alternatives(choice))


def rewritten(value: _F, changes: Mapping[str, Choice]) -> _F:
    """A frozen value with the fields at dotted paths exchanged, all of them at once.

    >>> rewritten(Exponential(), {"base": "2", "argument": FP32}).base
    '2'
    """
    inner: dict[str, dict[str, Choice]] = {}
    direct: dict[str, Choice] = {}
    for path, choice in changes.items():
        head, _, rest = path.partition(".")
        if rest:
            inner.setdefault(head, {})[rest] = choice
        else:
            direct[head] = choice
    found: Any = value
    for head, below in inner.items():
        direct[head] = rewritten(direct.get(head, getattr(found, head)), below)
    return dataclasses.replace(found, **direct)


def _alternatives(choice: Choice) -> tuple[Choice, ...]:
    if isinstance(choice, Accumulator):
        return tuple(
            dataclasses.replace(choice, format=f, order="library", aligned=False, flushed=None)
            for f in FORMAT_ALTERNATIVES
        )
    return FORMAT_ALTERNATIVES


def _is_wide(choice: Choice) -> bool:
    if isinstance(choice, Accumulator):
        choice = choice.format
    if isinstance(choice, Quantizer):
        choice = choice.element
    return isinstance(choice, Format) and (
        choice.mantissa_bits > FP32.mantissa_bits
        or choice.emin < FP32.emin
        or choice.emax > FP32.emax
    )


def reordered(recipe: _R) -> _R:
    """The same recipe with the terms of every sum taken from last to first.

    What the two disagree in is the floor that no recipe can beat without knowing the
    order of a kernel's sums.
    """
    sums = {
        site.name: dataclasses.replace(site.choice, order="reversed")
        for site in recipe.sites()
        if isinstance(site.choice, Accumulator)
    }
    other: Any = recipe.choose(sums)
    return dataclasses.replace(other, name=f"{other.name}~reordered")


def resolve(value: Any, storage: Format) -> Any:
    """Put the storage format in for every `INPUT` and `ByStorage` inside a (nested) frozen value.

    >>> resolve(Accumulator(INPUT), FORMATS["bf16"]).format.name
    'bf16'
    >>> [resolve(OPMATH, FORMATS[name]).name for name in ("bf16", "fp32", "fp64")]
    ['fp32', 'fp32', 'fp64']
    """
    if isinstance(value, ByStorage):
        return resolve(value.at(storage), storage)
    if isinstance(value, str):
        return storage if value == INPUT else value
    if isinstance(value, Format) or not dataclasses.is_dataclass(value):
        return value
    changes = {f.name: resolve(getattr(value, f.name), storage) for f in dataclasses.fields(value)}
    return dataclasses.replace(value, **changes)  # type: ignore[type-var]


def wire(value: Any) -> Any:
    """A (nested) frozen value as plain JSON data: what a fingerprint is taken of.

    >>> wire(Accumulator(INPUT, chunk=32))["chunk"]
    32
    """
    if isinstance(value, Format):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if dataclasses.is_dataclass(value):
        kind = {"kind": type(value).__name__}
        return kind | {f.name: wire(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): wire(item) for name, item in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, tuple):
        return [wire(item) for item in cast("tuple[Any, ...]", value)]
    return value


def deciding_fields(recipe: Any) -> dict[str, Any]:
    """The fields of a recipe that decide numbers: all but the words."""
    words = ("name", "doc", "source", "known")
    return {
        f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe) if f.name not in words
    }
