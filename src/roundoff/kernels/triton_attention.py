"""Our Triton kernel: compiled for tensors on CUDA, interpreted by Triton for those on the CPU.

The interpreter is asked for directly, without the variable TRITON_INTERPRET, which would have
to be set before anything imports Triton and would interpret every other kernel too. It runs the
kernel's own statements in numpy: the same roundings, with numpy's sums and exp2. Its product of
bf16 tensors multiplies bit patterns, so that bf16 is refused there. The event says which of
the two ran; nothing can step in for either.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from roundoff.kernels.announced import announced
from roundoff.kernels.kernel import Call, Kernel, stored_inputs
from roundoff.kernels.limits import Limits
from roundoff.operators.attention.call import Call as Attention
from roundoff.operators.attention.operator import call_of
from roundoff.operators.exponentials import LOG2_E
from roundoff.operators.protocol import Outputs, Problem
from roundoff.registry import is_installed, load, require

__all__ = ["TUTORIAL"]

ROWS = KEYS = 64
_EVENT = "triton::attention_forward"
_LIMITS = Limits(
    head_dims=(16, 32, 64, 128), masks=("none", "causal", "causal-lower-right"), other_v_dim=False
)


@functools.cache
def _kernel(interpreted: bool) -> Any:
    triton = require("triton", extra="triton", purpose="kernel triton-tutorial")
    attention_forward = load("roundoff.kernels.triton_flash:attention_forward")
    if not interpreted:
        return triton.jit(attention_forward)
    runtime = require("triton.runtime.interpreter", extra="triton", purpose="its interpreter")
    return runtime.InterpretedFunction(attention_forward)


def _bind(problem: Problem) -> Call:
    attention, stored = call_of(problem), stored_inputs(problem)
    q, k, v = (stored[name].contiguous() for name in "qkv")
    interpreted = q.device.type == "cpu"
    kernel = _kernel(interpreted)
    grid, fixed = _arguments(attention, q.dtype)

    def call() -> Outputs:
        out = torch.empty_like(q)
        lse = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
        kernel[grid](q, k, v, out, lse, *fixed[0], **fixed[1])
        return {"out": out, "lse": lse * math.log(2)}

    return announced(f"{_EVENT} {'interpreted' if interpreted else 'compiled'}", call)


def _arguments(
    call: Attention, dtype: torch.dtype
) -> tuple[tuple[int, int], tuple[tuple[Any, ...], dict[str, Any]]]:
    """The grid, and the kernel's arguments after its tensors."""
    language = require("triton.language", extra="triton", purpose="kernel triton-tutorial")
    (q_len, kv_len), (batch, heads) = call.lengths, call.q.shape[:2]
    shift = kv_len - q_len if call.mask.kind == "causal-lower-right" else 0
    numbers = (heads, call.k.shape[1], q_len, kv_len, call.scale * LOG2_E, shift)
    constants = {
        "D": call.q.shape[-1], "ROWS": ROWS, "KEYS": KEYS, "CAUSAL": call.mask.causal,
        "WEIGHTS": language.float32 if dtype == torch.float32 else language.float16,
    }  # fmt: skip
    return (math.ceil(q_len / ROWS), batch * heads), (numbers, constants)


def _refuses(problem: Problem) -> str | None:
    call = call_of(problem)
    if problem.format.name == "bf16" and call.q.device.type == "cpu":
        return "format bf16 on the CPU (Triton's interpreter multiplies its bit patterns)"
    if not call.scale > 0:
        return f"scale {call.scale} (takes positive ones)"
    return _LIMITS.refuse(problem)


def _missing() -> str | None:
    return None if is_installed("triton") else "no triton; pip install 'roundoff[triton]'"


TUTORIAL = Kernel(
    name="triton-tutorial",
    operator="attention",
    doc="flash attention in Triton as its tutorial writes it (interpreted on a CPU: slow)",
    bind=_bind,
    missing=_missing,
    refuses=_refuses,
    expects=(_EVENT,),
)
