"""Masks: which keys a query may see, and what is added to its scores.

Structural masks (causal, window) are computed a block at a time and never stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from roundoff.errors import UsageError
from roundoff.operators.attention.parameters import parse_mask

__all__ = ["Mask", "make_mask"]

Kind = Literal["none", "causal", "causal-lower-right", "window", "boolean", "additive"]


@dataclass(frozen=True, slots=True)
class Mask:
    """Which keys each query sees.

    `causal` aligns the diagonal at the upper left (torch's `is_causal`);
    `causal-lower-right` at the lower right (FlashAttention-2); both are one mask where
    query and key lengths are equal. `window` sees the `width` keys up to the lower-right diagonal.
    `tensor`, [batch | 1, heads | 1, q_len, kv_len], is boolean (True: visible) or added.
    """

    kind: Kind = "none"
    width: int | None = None
    tensor: Tensor | None = None

    @property
    def causal(self) -> bool:
        """Whether later keys are hidden by position."""
        return self.kind in ("causal", "causal-lower-right", "window")

    def apply(
        self, s: Tensor, rows: Tensor, keys: slice, lengths: tuple[int, int], *, unit: float = 1.0
    ) -> Tensor:
        """Scores of `rows` x `keys` with hidden ones at -inf; `lengths` are (q_len, kv_len).

        `unit` is what one unit of the scores is in the exponent of e; a bias is divided by it.
        """
        if self.kind == "none":
            return s
        if self.tensor is not None:
            part = self.tensor[..., rows, keys]
            if part.dtype == torch.bool:
                return s.masked_fill(~part, float("-inf"))
            return s + self.bias(s, rows, keys, unit=unit)
        return s.masked_fill(self._hidden(rows, keys, lengths), float("-inf"))

    def bias(self, s: Tensor, rows: Tensor, keys: slice, *, unit: float) -> Tensor:
        """What an additive mask adds to scores of `unit`, in their dtype."""
        assert self.tensor is not None
        bias = self.tensor[..., rows, keys].to(s.dtype)
        return bias if unit == 1.0 else bias / unit

    def hides(self, rows: Tensor, keys: slice, lengths: tuple[int, int]) -> bool:
        """Whether any of `rows` does not see some of `keys`; what is added hides nothing."""
        if self.kind in ("none", "additive"):
            return False
        if self.tensor is not None:
            return not bool(self.tensor[..., rows, keys].all())
        return bool(self._hidden(rows, keys, lengths).any())

    def sees(self, rows: Tensor, keys: slice, lengths: tuple[int, int]) -> bool:
        """Whether position lets any of `rows` see any of `keys`; tensors are not looked into."""
        if not self.causal or not len(rows):
            return True
        return not bool(self._hidden(rows, keys, lengths).all())

    def _hidden(self, rows: Tensor, keys: slice, lengths: tuple[int, int]) -> Tensor:
        first, end = self.seen(rows, lengths)
        key = torch.arange(keys.start, keys.stop, device=rows.device)[None, :]
        return (key < first[:, None]) | (key >= end[:, None])

    def seen(self, rows: Tensor, lengths: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The first key that each row sees, and the first after those, where position decides.

        Either may lie outside the keys that there are.
        """
        q_len, kv_len = lengths
        if not self.causal:
            return torch.zeros_like(rows), torch.full_like(rows, kv_len)
        end = rows + (1 if self.kind == "causal" else kv_len - q_len + 1)
        width = kv_len + q_len if self.width is None else self.width
        return end - width, end

    def dense(self, lengths: tuple[int, int], device: torch.device) -> Tensor | None:
        """The mask as the tensor that libraries take: True where visible (None: no mask)."""
        if self.kind == "none" or self.tensor is not None:
            return self.tensor
        rows = torch.arange(lengths[0], device=device)
        return ~self._hidden(rows, slice(0, lengths[1]), lengths)


def make_mask(text: str, tensor: Tensor | None = None) -> Mask:
    """The mask that `text` names; boolean and additive ones bring their tensor."""
    kind, _, width = parse_mask(text).partition(":")
    if (kind in ("boolean", "additive")) != (tensor is not None):
        raise UsageError(f"a mask tensor goes with boolean and additive masks, not with {text!r}")
    return Mask(kind, int(width) if width else None, tensor)  # type: ignore[arg-type]
