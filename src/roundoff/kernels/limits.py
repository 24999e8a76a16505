"""What an attention kernel supports, as data: checked before the kernel is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from roundoff.operators.attention.operator import call_of
from roundoff.operators.protocol import Problem

__all__ = ["ALL_MASKS", "Limits"]

ALL_MASKS = ("none", "causal", "causal-lower-right", "window", "boolean", "additive")


@dataclass(frozen=True, slots=True)
class Limits:
    """Formats, head dims (None: any), kinds of mask, multiples of the length, and what else
    a kernel may demand: equal numbers of heads, equal head dims, a kind of device (None: any);
    and the kinds of device on which it has gradients.
    """

    formats: tuple[str, ...] = ("bf16", "fp16", "fp32")
    head_dims: tuple[int, ...] | None = None
    masks: tuple[str, ...] = ALL_MASKS
    seq_multiple: int = 1
    grouped_heads: bool = True
    other_v_dim: bool = True
    device: Literal["cpu", "cuda"] | None = None
    gradients: tuple[str, ...] = ("cpu", "cuda")

    def refuse(self, problem: Problem) -> str | None:  # noqa: PLR0911 - one line a limit
        """Why a kernel with these limits cannot take `problem`, in a few words."""
        call = call_of(problem)
        q, k, v = call.q, call.k, call.v
        if self.device not in (None, q.device.type):
            return f"device {q.device.type} (takes {self.device})"
        if problem.format.name not in self.formats:
            return f"format {problem.format.name} (takes {', '.join(self.formats)})"
        if self.head_dims is not None and q.shape[-1] not in self.head_dims:
            return f"head_dim {q.shape[-1]} (takes {', '.join(map(str, self.head_dims))})"
        if call.mask.kind not in self.masks:
            return f"mask {call.mask.kind} (takes {', '.join(self.masks)})"
        if any(n % self.seq_multiple for n in call.lengths):
            return f"lengths {call.lengths} (takes multiples of {self.seq_multiple})"
        if not self.grouped_heads and q.shape[1] != k.shape[1]:
            return f"{k.shape[1]} key heads for {q.shape[1]} query heads (takes equal numbers)"
        if not self.other_v_dim and v.shape[-1] != q.shape[-1]:
            return f"v_dim {v.shape[-1]} beside head_dim {q.shape[-1]} (takes equal ones)"
        if "dout" in problem.inputs and q.device.type not in self.gradients:
            on = " or ".join(self.gradients)
            return f"gradients on {q.device.type} (has them {f'on {on}' if on else 'nowhere'})"
        return None
