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
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from roundoff.kernels.announced import announced
from roundoff.kernels.kernel import Call, Kernel, needs, stored_inputs
from roundoff.kernels.limits import Limits
from roundoff.operators.attention.call import Call as Attention
from roundoff.operators.attention.operator import call_of
from roundoff.operators.exponentials import LOG2_E
from roundoff.operators.protocol import Outputs, Problem
from roundoff.registry import load, require

__all__ = ["TUTORIAL"]

ROWS = KEYS = 64
OWN, OTHERS = 128, 32
"""A backward kernel's own block, of keys or of queries, and the tile of the others."""
_EVENT = "triton::attention_forward"
_LIMITS = Limits(
    head_dims=(16, 32, 64, 128), masks=("none", "causal", "causal-lower-right"), other_v_dim=False,
)  # fmt: skip


@functools.cache
def _kernel(name: str, interpreted: bool) -> Any:
    triton = require("triton", extra="triton", purpose="kernel triton-tutorial")
    function = load(f"roundoff.kernels.{name}")
    if not interpreted:
        return triton.jit(function)
    runtime = require("triton.runtime.interpreter", extra="triton", purpose="its interpreter")
    return runtime.InterpretedFunction(function)


def _bind(problem: Problem) -> Call:
    attention, stored = call_of(problem), stored_inputs(problem)
    q, k, v = (stored[name].contiguous() for name in "qkv")
    dout = stored["dout"].contiguous() if "dout" in stored else None
    how = "interpreted" if _is_interpreted(attention) else "compiled"

    def call() -> Outputs:
        out = torch.empty_like(q)
        lse = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
        launch = functools.partial(_launch, attention)
        launch("triton_flash:attention_forward", (q, k, v, out, lse), attention.scale * LOG2_E)
        found = {"out": out, "lse": lse * math.log(2)}
        if dout is None:
            return found
        return found | _gradients(launch, attention, (q, k, v, out, dout, lse))

    return announced(f"{_EVENT} {how}", call)


def _gradients(
    launch: Callable[..., None], call: Attention, tensors: tuple[Tensor, ...]
) -> Outputs:
    """dQ, dK, dV; those of query heads that share a key head are added in float32."""
    q, k, *rest = tensors
    arguments = q, k * (call.scale * LOG2_E), *rest
    dq, each = torch.empty_like(q), q.new_empty(2, *q.shape[:2], *k.shape[2:])
    backward = "triton_flash_backward:gradients_of_"
    launch(f"{backward}keys", (*arguments, *each), call.scale, tile=(OTHERS, OWN), over_keys=True)
    launch(f"{backward}queries", (*arguments, dq), math.log(2), tile=(OWN, OTHERS))
    if k.shape[1] != q.shape[1]:
        grouped = each.float().view(2, q.shape[0], k.shape[1], -1, *k.shape[2:])
        each = grouped.sum(3).to(q.dtype)
    return {"dq": dq, "dk": each[0], "dv": each[1]}


def _is_interpreted(call: Attention) -> bool:
    return call.q.device.type == "cpu"


def _launch(
    call: Attention, name: str, tensors: tuple[Tensor, ...], scale: float, *,
    tile: tuple[int, int] = (ROWS, KEYS), over_keys: bool = False,
) -> None:  # fmt: skip
    """Run a kernel over the blocks of queries (or of keys) of every query head.

    `tile` is (queries, keys), of which it has one to itself and walks along the other.
    """
    language = require("triton.language", extra="triton", purpose="kernel triton-tutorial")
    (q_len, kv_len), (batch, heads) = call.lengths, call.q.shape[:2]
    shift = kv_len - q_len if call.mask.kind == "causal-lower-right" else 0
    rows, keys = tile
    blocks = math.ceil(kv_len / keys) if over_keys else math.ceil(q_len / rows)
    dtype = tensors[0].dtype
    _kernel(name, _is_interpreted(call))[blocks, batch * heads](
        *tensors, heads, call.k.shape[1], q_len, kv_len, scale, shift,
        D=call.q.shape[-1], ROWS=rows, KEYS=keys, CAUSAL=call.mask.causal,
        WEIGHTS=language.float32 if dtype == torch.float32 else language.float16,
    )  # fmt: skip


def _refuses(problem: Problem) -> str | None:
    call = call_of(problem)
    if problem.format.name == "bf16" and call.q.device.type == "cpu":
        return "format bf16 on the CPU (Triton's interpreter multiplies its bit patterns)"
    if not call.scale > 0:
        return f"scale {call.scale} (takes positive ones)"
    return _LIMITS.refuse(problem)


TUTORIAL = Kernel(
    name="triton-tutorial",
    operator="attention",
    doc="flash attention in Triton as its tutorial writes it (interpreted on a CPU: slow)",
    bind=_bind,
    missing=needs("triton", extra="triton"),
    refuses=_refuses,
    expects=(_EVENT,),
)
