"""`Backward`: where the gradients of an attention kernel round, and how it computes them.

Letters: P = softmax(S), dP = dO V^T, D = rowsum(dO O), dS = P (dP - D), and dQ = dS K,
dK = dS^T Q, dV = P^T dO, the first two times the scale.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from roundoff.errors import UsageError
from roundoff.formats import Format
from roundoff.operators.attention.recipe import Logits, Prescale, Recipe, Tile, possible
from roundoff.sites import INPUT, OPMATH, Accumulator, Element, Exponential, resolve

__all__ = ["Backward", "Scaled", "Tiles"]

ACCUMULATOR = Accumulator()
EXPONENTIAL = Exponential()
AS_IT_IS, AFTER, WHOLE = Prescale(), Logits(), Tile()


@dataclass(frozen=True, slots=True)
class Scaled:
    """Where the scale enters dQ and dK, and the format of what it was multiplied onto.

    - `ds`: onto dS after its cast;
    - `products`: onto every tile's product, as the alpha of a GEMM;
    - `sums`: onto the finished sums.

    Where Q or K carry the scale (`prescale`), what is left of it.
    """

    at: Literal["ds", "products", "sums"] = "sums"
    format: Element = OPMATH


@dataclass(frozen=True, slots=True)
class Tiles:
    """Which `Tile` a backward pass takes: rows of (largest head dim, least q_len, tile)."""

    rows: tuple[tuple[int, int, Tile], ...]

    def tile(self, head_dim: int, q_len: int) -> Tile:
        """The first row that fits; the last row where none does."""
        for largest, least, tile in self.rows:
            if head_dim <= largest and q_len >= least:
                return tile
        return self.rows[-1][2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backward:
    """The backward pass of a kernel as data; the fields stand in the order of the data.

    `weights`: P is `recomputed` from S and the stored LSE, or was `saved` (normalised) by the
    forward pass as it entered PV, or `kept` as it was before that cast; both need all keys in one
    tile. `prescale`, `qk`, `scores`, `logits`
    and `exponential` say how it is recomputed, and mean what they do in `Recipe`.

    `delta` is what D is summed from: dO times the `stored` O, or the `exact` one before its
    cast, or P dP (`weights`). With `weights` and `delta_sum` in the order `softmax`, dS of whole
    rows is what torch's own derivative of softmax makes of P and dP.

    dQ is summed over tiles of keys, dK and dV over tiles of queries, both walked in the
    `tile`'s direction. `heads` is the format in which a query head's dK and dV are stored
    before those of one group are added; None: a group's heads are added, one after the other,
    to the same running sums.
    """

    weights: Literal["recomputed", "saved", "kept"] = "recomputed"
    lse: Element = OPMATH
    prescale: Prescale = AS_IT_IS
    qk: Accumulator = ACCUMULATOR
    scores: Element = OPMATH
    logits: Logits = AFTER
    exponential: Exponential = EXPONENTIAL
    probabilities: Element = INPUT
    dp: Accumulator = ACCUMULATOR
    delta: Literal["stored", "exact", "weights"] = "stored"
    delta_sum: Accumulator = ACCUMULATOR
    difference: Element = OPMATH
    ds: Element = INPUT
    scaled: Scaled = Scaled()
    dq: Accumulator = ACCUMULATOR
    dk: Accumulator = ACCUMULATOR
    dv: Accumulator = ACCUMULATOR
    heads: Element | None = INPUT
    tile: Tile | Tiles = WHOLE
    output: Element = INPUT

    def __post_init__(self) -> None:
        if (self.prescale.operands == "none") == (self.logits.scale == "before"):
            raise UsageError(
                "a backward pass applies the scale to S nowhere or twice; logits.scale is "
                "'before' exactly where prescale puts it onto the operands"
            )

    def resolved(self, recipe: Recipe, storage: Format, *, head_dim: int, q_len: int) -> Backward:
        """The backward pass of one call of `recipe`: storage format and tile put in."""
        tile = self.tile.tile(head_dim, q_len) if isinstance(self.tile, Tiles) else self.tile
        how: Backward = resolve(replace(self, tile=tile), storage)
        prescale = how.prescale if how.weights == "recomputed" else recipe.prescale
        operand = storage if prescale.operands == "none" else prescale.format
        ds = how.scaled.format if how.scaled.at == "ds" else how.ds
        total = how.delta_sum
        if total.order == "softmax" and how.delta != "weights":
            total = replace(total, order="library")
        return replace(
            how,
            delta_sum=total,
            qk=possible(how.qk, operand),
            dp=possible(how.dp, storage),
            dq=possible(how.dq, operand, ds),
            dk=possible(how.dk, operand, ds),
            dv=possible(how.dv, how.probabilities, storage),
        )

    def recomputing(self, recipe: Recipe) -> Recipe:
        """The recipe by whose forward steps P is made (again)."""
        if self.weights != "recomputed":
            return recipe
        return replace(
            recipe, prescale=self.prescale, qk=self.qk, scores=self.scores, logits=self.logits,
            exponential=self.exponential,
        )  # fmt: skip
