"""The flash-attn package, where it is installed: FlashAttention-2 on CUDA."""

from __future__ import annotations

from typing import Any

from roundoff.kernels.kernel import Call, Kernel, needs_cuda, stored_inputs
from roundoff.kernels.limits import Limits
from roundoff.operators.attention.operator import call_of
from roundoff.operators.protocol import Outputs, Problem
from roundoff.registry import is_installed, load

__all__ = ["FLASH_ATTN"]

_LIMITS = Limits(
    ("bf16", "fp16"),
    head_dims=tuple(range(8, 257, 8)),
    masks=("none", "causal", "causal-lower-right", "window"),
    other_v_dim=False,
    device="cuda",
)


def _bind(problem: Problem) -> Call:
    attend: Any = load("flash_attn:flash_attn_func")
    attention, stored = call_of(problem), stored_inputs(problem)
    q, k, v = (stored[name].transpose(1, 2) for name in "qkv")
    width = attention.mask.width

    def call() -> Outputs:
        out: Any = attend(
            q, k, v, softmax_scale=attention.scale, causal=attention.mask.causal,
            window_size=(-1, -1) if width is None else (width - 1, 0),
        )  # fmt: skip
        return {"out": out.transpose(1, 2)}

    return call


def _refuses(problem: Problem) -> str | None:
    """Its causal mask aligns at the lower right (since 2.1)."""
    call = call_of(problem)
    if call.mask.kind == "causal" and call.lengths[0] != call.lengths[1]:
        return f"mask causal at lengths {call.lengths} (takes causal-lower-right there)"
    return _LIMITS.refuse(problem)


def _missing() -> str | None:
    if reason := needs_cuda():
        return reason
    return None if is_installed("flash_attn") else "no flash-attn; pip install flash-attn"


FLASH_ATTN = Kernel(
    name="flash-attn",
    operator="attention",
    doc="FlashAttention-2 as the flash-attn package calls it",
    bind=_bind,
    missing=_missing,
    refuses=_refuses,
    expects=("flash_attn::_flash_attn_forward",),
)
