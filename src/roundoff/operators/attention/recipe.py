"""`Recipe`: what an attention kernel does at each of the twelve places where kernels differ.

Letters: S = QK^T (scores), m (running maximum), P = exp(S - m), l (row sum of P), O (output).
The numbers in brackets are the places; docs/recipes.md explains each with its sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

from roundoff.errors import UnknownNameError
from roundoff.formats import FORMATS, Format
from roundoff.sites import INPUT, Accumulator, Choice, Element, Quantizer, Site, resolve

__all__ = [
    "Exponential", "Logits", "Maximum", "Normalise", "Operands", "Prescale", "Recipe", "RowSum",
    "Tile",
]  # fmt: skip

FP64, FP32 = FORMATS["fp64"], FORMATS["fp32"]
BF16, FP16 = FORMATS["bf16"], FORMATS["fp16"]


@dataclass(frozen=True, slots=True)
class Operands:
    """[0] How Q, K and V are quantised on the way in (None: taken as they are).

    `rotate` multiplies Q and K by one random orthogonal matrix first ("incoherent
    processing"), which leaves QK^T as it was and spreads outliers over the head.
    """

    q: Quantizer | None = None
    k: Quantizer | None = None
    v: Quantizer | None = None
    rotate: bool = False


@dataclass(frozen=True, slots=True)
class Prescale:
    """[1] What is multiplied onto Q and K before the product, and the format that it goes to.

    `none`; `q`: the scale onto Q; `qk`: its square root onto both.
    """

    operands: Literal["none", "q", "qk"] = "none"
    format: Element = FP32


@dataclass(frozen=True, slots=True)
class Logits:
    """[4] Where scale and mask are put in: `after` the product, in a rounding of its own, or
    in the `fma` of the exponential; and the format of the result.

    With `Prescale` of `q` or `qk` there is no scale left to apply.
    """

    scale: Literal["after", "fma", "before"] = "after"
    format: Element = FP32


@dataclass(frozen=True, slots=True)
class Exponential:
    """[5] Base and approximation of exp, and the formats of its argument and result.

    `approximation` names a row of `exponentials.EXPONENTIALS`. The last `row length mod
    tail` columns of a tile take the exact exponential, as vectorised loops do.
    """

    base: Literal["e", "2"] = "e"
    approximation: str = "exact"
    tail: int | None = None
    argument: Element = FP32
    format: Element = FP32


@dataclass(frozen=True, slots=True)
class Maximum:
    """[6] The rule of the running maximum m, and the formats of m and of the factor exp(m_old - m).

    - `always`: m follows the largest score of every tile;
    - `lazy`: only if it rises by more than `threshold` (in powers of two);
    - `row`: the maximum of the whole row is found first, so nothing is ever rescaled;
    - `tie-safe`: where a tile's maximum is tied, m = beta * maximum if that is positive and 0
      if it is negative, so that no entry of P is exactly 1 (arXiv 2510.04212). The shift is
      capped so that the tied entries of P stay normal numbers: without the cap a maximum of
      -1e4 or 1e4 turns the whole row into 0/0.
    """

    rule: Literal["always", "lazy", "row", "tie-safe"] = "always"
    threshold: float = 0.0
    beta: float = 2.0
    format: Element = FP32
    factor: Element = FP32


@dataclass(frozen=True, slots=True)
class RowSum:
    """[8] Whether l adds P `before` or `after` P's cast, and how l is carried."""

    adds: Literal["before", "after"] = "before"
    accumulator: Accumulator = Accumulator()


@dataclass(frozen=True, slots=True)
class Normalise:
    """[10] Where l is divided out, how, and the format of the result.

    `end`: of O, after the last tile; `block`: of every tile's P before its product with V
    (and of the running O), which with one tile is the textbook's softmax.
    """

    when: Literal["end", "block"] = "end"
    by: Literal["division", "reciprocal"] = "division"
    format: Element = FP32


@dataclass(frozen=True, slots=True)
class Tile:
    """[11] How the keys are walked.

    `keys` a tile (None: all of them), from the first or the last; with `splits` > 1 the keys
    are cut into that many stretches whose results are combined through their LSE. `queries`
    a tile changes nothing in the forward pass, since rows do not meet.
    """

    keys: int | None = None
    queries: int | None = None
    direction: Literal["forward", "backward"] = "forward"
    splits: int = 1


@dataclass(frozen=True, slots=True)
class TileRule:
    """Which `Tile` a kernel takes: rows of (largest head dim, causal or None for both, tile)."""

    rows: tuple[tuple[int, bool | None, Tile], ...]

    def tile(self, head_dim: int, causal: bool) -> Tile:
        """The first row that fits; the last row where none does."""
        for largest, when, tile in self.rows:
            if head_dim <= largest and when in (None, causal):
                return tile
        return self.rows[-1][2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """An attention kernel's numerics as data.

    `source` says where the choices were read, `known` whether they were compared with the
    running kernel ("run") or only read ("read"), or are a definition of ours ("defined").
    """

    name: str
    doc: str
    source: str = ""
    known: Literal["run", "read", "defined"] = "defined"
    operands: Operands = Operands()
    prescale: Prescale = Prescale()
    qk: Accumulator = Accumulator()  # [2] the product QK^T
    scores: Element = FP32  # [3] the format in which S is stored
    logits: Logits = Logits()
    exponential: Exponential = Exponential()
    maximum: Maximum = Maximum()
    probabilities: Element | Quantizer = INPUT  # [7] the format of P as it enters PV
    row_sum: RowSum = RowSum()
    pv: Accumulator = Accumulator()  # [9] the product PV and the running O
    normalise: Normalise = Normalise()
    tile: Tile | TileRule = Tile()
    output: Element = INPUT  # [12] the cast of the output

    def resolved(self, storage: Format, *, head_dim: int, causal: bool) -> Recipe:
        """The recipe for one call: storage format and tile put in."""
        tile = self.tile.tile(head_dim, causal) if isinstance(self.tile, TileRule) else self.tile
        return resolve(replace(self, tile=tile), storage)

    def sites(self) -> tuple[Site, ...]:
        """The places at which this recipe rounds or may round, in the order of the data."""
        return tuple(
            Site(name, doc, _get(self, path), _alternatives(_get(self, path)))
            for name, (path, doc) in SITES.items()
        )

    def choose(self, choices: Mapping[str, Choice]) -> Recipe:
        """The same recipe with other choices at the named sites."""
        recipe = self
        for name, choice in choices.items():
            if name not in SITES:
                raise UnknownNameError("site", name, SITES)
            recipe = _set(recipe, SITES[name][0], choice)
        return recipe

    @property
    def wide(self) -> bool:
        """Whether some site asks for more than fp32, so that arithmetic must be float64."""
        return any(_is_wide(site.choice) for site in self.sites())


SITES: dict[str, tuple[tuple[str, ...], str]] = {
    "prescale": (("prescale", "format"), "Q (and K) times the scale"),
    "qk": (("qk",), "the sum in QK^T"),
    "scores": (("scores",), "S as stored"),
    "logits": (("logits", "format"), "S after scale and mask"),
    "argument": (("exponential", "argument"), "the argument of exp"),
    "exp": (("exponential", "format"), "the result of exp"),
    "maximum": (("maximum", "format"), "the running maximum m"),
    "factor": (("maximum", "factor"), "the rescaling factor exp(m_old - m)"),
    "probabilities": (("probabilities",), "P as it enters PV"),
    "row_sum": (("row_sum", "accumulator"), "the running row sum l"),
    "pv": (("pv",), "the sum in PV and the running output O"),
    "normalise": (("normalise", "format"), "O (or P) over l"),
    "output": (("output",), "the output's cast"),
}


def _get(value: object, path: tuple[str, ...]) -> Choice:
    for name in path:
        value = getattr(value, name)
    return value


def _set(recipe: Recipe, path: tuple[str, ...], choice: Choice) -> Recipe:
    head, *rest = path
    if rest:
        choice = replace(getattr(recipe, head), **{rest[0]: choice})
    return replace(recipe, **{head: choice})


def _alternatives(choice: Choice) -> tuple[Choice, ...]:
    if isinstance(choice, Accumulator):
        formats = (FP64, FP32, BF16, FP16)
        return tuple(replace(choice, format=f, order="library") for f in formats)
    return (FP64, FP32, BF16, FP16)


def _is_wide(choice: Choice) -> bool:
    if isinstance(choice, Accumulator):
        choice = choice.format
    return isinstance(choice, Format) and choice.mantissa_bits > FP32.mantissa_bits


def fingerprint_fields(recipe: Recipe) -> dict[str, object]:
    """The fields that decide numbers: all but the words."""
    words = {"name", "doc", "source", "known"}
    return {f.name: getattr(recipe, f.name) for f in fields(recipe) if f.name not in words}
