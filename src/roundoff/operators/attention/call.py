"""What goes into attention and what comes out, for kernels, recipes and golden alike."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from roundoff.operators.attention.masks import Mask

__all__ = ["Attention", "Call"]


@dataclass(frozen=True, slots=True)
class Attention:
    """Output [B,H,R,Dv] and log-sum-exp [B,H,R] of the rows that were asked for.

    `rescales` [B,H,R] counts the tiles after the first at which a row's maximum rose, and
    `rescaled_by` is the sum of the rises in powers of two; both None for golden.
    """

    out: Tensor
    lse: Tensor
    rescales: Tensor | None = None
    rescaled_by: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One call of attention: what every kernel, recipe and golden is given."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Mask
    scale: float
    rows: Tensor

    @property
    def lengths(self) -> tuple[int, int]:
        """(q_len, kv_len)."""
        return self.q.shape[-2], self.k.shape[-2]
