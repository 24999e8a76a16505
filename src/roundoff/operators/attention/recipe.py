"""`Recipe`: what an attention kernel does at each of the places where kernels differ.

Letters: S = QK^T (scores), m (running maximum), P = exp(S - m), l (row sum of P), O (output).
The numbers in brackets are those of the places in docs/recipes.md, which explains each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from roundoff.errors import UsageError
from roundoff.formats import Format
from roundoff.sites import (
    INPUT,
    OPMATH,
    Accumulator,
    Element,
    Exponential,
    Place,
    Quantizer,
    Sited,
    resolve,
)

if TYPE_CHECKING:
    from roundoff.operators.attention.backward_recipe import Backward

__all__ = [
    "Exponential",
    "Logits",
    "Maximum",
    "Normalise",
    "Operands",
    "Prescale",
    "Recipe",
    "RowSum",
    "Tile",
    "TileRule",
    "possible",
]


ACCUMULATOR = Accumulator()
EXPONENTIAL = Exponential()
AS_THEY_ARE: tuple[None, ...] = (None,)


@dataclass(frozen=True, slots=True)
class Operands:
    """[0] How Q, K and V are quantised on the way in (None: taken as they are).

    `rotate` multiplies Q and K by one random orthogonal matrix first ("incoherent
    processing"), which leaves QK^T as it was and spreads outliers over the head. `smooth` takes
    the mean over all keys from K first (SageAttention), which moves every score of a row alike;
    the log-sum-exp gets it back.
    """

    q: Quantizer | None = None
    k: Quantizer | None = None
    v: Quantizer | None = None
    rotate: bool = False
    smooth: bool = False


@dataclass(frozen=True, slots=True)
class Prescale:
    """[1] What is multiplied onto Q and K before the product, and the format that it goes to.

    `none`; `q`, `k`: the scale onto Q or K; `qk`: the square root of its size onto both, its
    sign onto Q.
    """

    operands: Literal["none", "q", "k", "qk"] = "none"
    format: Element = OPMATH


@dataclass(frozen=True, slots=True)
class Logits:
    """[4] Where the scale is put in, and the format of S after scale and mask.

    - `after`: onto the product, in a rounding of its own;
    - `fma`: in the multiply-add that makes the exponential's argument, S * c - m * c;
    - `argument`: onto the difference, (S - m) * c;
    - `before`: it went in with `Prescale`.

    Under `fma` and `argument` the maximum is of unscaled scores; a mask that is added makes
    both `after`, since it must be added to scaled ones. Such a mask is added to S as scaled and
    rounded to `format` (`mask="after"`), or in one multiply-add with the scale (`"fma"`).
    """

    scale: Literal["after", "fma", "argument", "before"] = "after"
    format: Element = OPMATH
    mask: Literal["after", "fma"] = "after"


@dataclass(frozen=True, slots=True)
class Maximum:
    """[6] The rule of the running maximum m, and the formats of m and of the factor exp(m_old - m).

    - `always`: m follows the largest score of every tile;
    - `lazy`: only if it rises by more than `threshold` (in powers of two);
    - `row`: the maximum of the whole row is found first, so nothing is ever rescaled;
    - `offset`: m stays `threshold` (in powers of two) above the largest score, so that no entry
      of P is 1, but those of tied scores are all the same;
    - `tie-safe`: where a tile's maximum is tied, m = beta * maximum if that is positive and 0
      if it is negative, so that no entry of P is exactly 1 (arXiv 2510.04212). The shift is
      capped so that the tied entries of P stay normal numbers: without the cap a maximum of
      -1e4 or 1e4 turns the whole row into 0/0.
    """

    rule: Literal["always", "lazy", "row", "tie-safe", "offset"] = "always"
    threshold: float = 0.0
    beta: float = 2.0
    format: Element = OPMATH
    factor: Element = OPMATH


@dataclass(frozen=True, slots=True)
class RowSum:
    """[8] Whether l adds P `before` or `after` P's cast, and how l is carried."""

    adds: Literal["before", "after"] = "before"
    accumulator: Accumulator = ACCUMULATOR


@dataclass(frozen=True, slots=True)
class Normalise:
    """[10] Where l is divided out, how, and the format of the result.

    `end`: of O, after the last tile; `block`: of every tile's P before its product with V
    (and of the running O), which with one tile is the textbook's softmax.
    """

    when: Literal["end", "block"] = "end"
    by: Literal["division", "reciprocal"] = "division"
    format: Element = OPMATH


@dataclass(frozen=True, slots=True)
class Tile:
    """[11] How the keys are walked.

    `keys` a tile (None: all of them), from the first or the last; with `splits` > 1 the keys
    are cut into that many stretches whose results are combined through their LSE. `queries`
    a tile changes nothing in the forward pass, since rows do not meet, unless the direction is
    `cut-first`: then each tile of queries takes the keys' tiles that its mask or a tensor's end
    cuts through first, and those that all its queries see after them, both from the first on.
    """

    keys: int | None = None
    queries: int | None = None
    direction: Literal["forward", "backward", "cut-first"] = "forward"
    splits: int = 1

    def cut(self, begin: int, end: int) -> list[slice]:
        """The tiles of the keys from `begin` to `end`, from the first on; the last may be smaller.

        >>> Tile(4).cut(0, 6), Tile().cut(0, 6), Tile(4).cut(0, 0)
        ([slice(0, 4, None), slice(4, 6, None)], [slice(0, 6, None)], [])
        """
        width = self.keys or max(1, end - begin)
        return [slice(at, min(at + width, end)) for at in range(begin, end, width)]

    def in_order(self, tiles: list[slice]) -> list[slice]:
        """Tiles of keys or of queries in the order in which they are walked."""
        return tiles[::-1] if self.direction == "backward" else tiles


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
class Recipe(Sited):
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
    qk: Accumulator = ACCUMULATOR  # [2] the product QK^T
    scores: Element = OPMATH  # [3] the format in which S is stored
    logits: Logits = Logits()
    exponential: Exponential = EXPONENTIAL  # [5]
    maximum: Maximum = Maximum()
    probabilities: Element | Quantizer = INPUT  # [7] the format of P as it enters PV
    row_sum: RowSum = RowSum()
    pv: Accumulator = ACCUMULATOR  # [9] the product PV and the running O
    normalise: Normalise = Normalise()
    tile: Tile | TileRule = Tile()
    output: Element = INPUT  # [12] the cast of the output
    backward: Backward | None = None  # the gradients; None: not known

    SITES: ClassVar[Mapping[str, Place]] = {
        "q": Place("operands.q", "Q on its way in", AS_THEY_ARE),
        "k": Place("operands.k", "K on its way in", AS_THEY_ARE),
        "v": Place("operands.v", "V on its way in", AS_THEY_ARE),
        "prescale": Place("prescale.format", "Q (and K) times the scale"),
        "qk": Place("qk", "the sum in QK^T"),
        "scores": Place("scores", "S as stored"),
        "logits": Place("logits.format", "S after scale and mask"),
        "argument": Place("exponential.argument", "the argument of exp"),
        "approximation": Place(
            "exponential.approximation", "how exp is computed", ("exact", "fexp_u20", "exp_u20")
        ),
        "exp": Place("exponential.format", "the result of exp"),
        "maximum": Place("maximum.format", "the running maximum m"),
        "factor": Place("maximum.factor", "the rescaling factor exp(m_old - m)"),
        "probabilities": Place("probabilities", "P as it enters PV"),
        "row_sum": Place("row_sum.accumulator", "the running row sum l"),
        "pv": Place("pv", "the sum in PV and the running output O"),
        "normalise": Place("normalise.format", "O (or P) over l"),
        "output": Place("output", "the output's cast"),
        "backward.lse": Place("backward.lse", "the LSE as the forward pass stored it"),
        "backward.prescale": Place("backward.prescale.format", "Q (and K) times the scale"),
        "backward.qk": Place("backward.qk", "the sum in QK^T, again"),
        "backward.scores": Place("backward.scores", "S as stored, again"),
        "backward.logits": Place("backward.logits.format", "S after scale and mask, again"),
        "backward.argument": Place("backward.exponential.argument", "the argument of exp, again"),
        "backward.approximation": Place(
            "backward.exponential.approximation", "how exp is computed, again",
            ("exact", "fexp_u20", "exp_u20"),
        ),
        "backward.exp": Place("backward.exponential.format", "the result of exp, again"),
        "backward.probabilities": Place("backward.probabilities", "P as it enters dV = P^T dO"),
        "backward.dp": Place("backward.dp", "the sum in dP = dO V^T"),
        "backward.delta": Place(
            "backward.delta", "the O that D = rowsum(dO O) is taken of, or P",
            ("exact", "stored", "weights"),
        ),
        "backward.delta_sum": Place("backward.delta_sum", "the row sum D"),
        "backward.difference": Place("backward.difference", "dP - D"),
        "backward.ds": Place("backward.ds", "dS = P (dP - D) as it enters dQ and dK"),
        "backward.scaled": Place("backward.scaled.format", "what the scale is multiplied onto"),
        "backward.dq": Place("backward.dq", "the sum in dQ = dS K over key tiles"),
        "backward.dk": Place("backward.dk", "the sum in dK = dS^T Q over query tiles"),
        "backward.dv": Place("backward.dv", "the sum in dV = P^T dO over query tiles"),
        "backward.heads": Place("backward.heads", "dK and dV before heads of a group are added"),
        "backward.output": Place("backward.output", "the cast of the gradients"),
    }  # fmt: skip

    @property
    def forward(self) -> Recipe:
        """The same recipe without its gradients, whose sites then carry nothing in fp64."""
        return replace(self, backward=None)

    def __post_init__(self) -> None:
        if (self.prescale.operands == "none") == (self.logits.scale == "before"):
            times = "nowhere" if self.prescale.operands == "none" else "twice"
            raise UsageError(
                f"recipe {self.name!r} applies the scale {times}; logits.scale is 'before' "
                "exactly where prescale puts it onto the operands"
            )

    def resolved(self, storage: Format, *, head_dim: int, causal: bool) -> Recipe:
        """The recipe for one call: storage format and tile put in."""
        tile = self.tile.tile(head_dim, causal) if isinstance(self.tile, TileRule) else self.tile
        recipe = resolve(replace(self, tile=tile), storage)
        q = storage if recipe.prescale.operands == "none" else recipe.prescale.format
        qk = possible(recipe.qk, q, recipe.operands.q)
        pv = possible(recipe.pv, recipe.probabilities, recipe.operands.v)
        return replace(recipe, qk=qk, pv=pv, row_sum=_possible_sum(recipe, storage))


def possible(total: Accumulator, *operands: Element | Quantizer | None) -> Accumulator:
    """`total`, with torch's usual order where its operands are no tensors of a native product."""
    fits = all(x is None or x == total.format for x in operands)
    return total if total.order != "native" or fits else replace(total, order="library")


def _possible_sum(recipe: Recipe, storage: Format) -> RowSum:
    """The row sum, with torch's order where torch.softmax would not do what the recipe says."""
    total, tile = recipe.row_sum.accumulator, recipe.tile
    if total.order != "softmax":
        return recipe.row_sum
    assert isinstance(tile, Tile)
    plain = resolve(Recipe(name="", doc=""), storage)
    as_torch = (
        tile.keys is None
        and tile.splits == 1
        and replace(recipe.exponential, log2e="argument", tail=None) == plain.exponential
        and replace(recipe.maximum, rule="always") == plain.maximum
        and total.format == plain.row_sum.accumulator.format
        and recipe.normalise == replace(plain.normalise, when="block")
    )
    if as_torch:
        return recipe.row_sum
    return replace(recipe.row_sum, accumulator=replace(total, order="library"))
