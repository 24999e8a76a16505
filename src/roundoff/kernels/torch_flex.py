"""FlexAttention as people use it: through torch.compile (uncompiled, it is another computation)."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import (
    create_block_mask,  # pyright: ignore[reportUnknownVariableType]
    flex_attention,
)

from roundoff.kernels.gradients import leaves_of, with_gradients
from roundoff.kernels.kernel import Call, Kernel, stored_inputs
from roundoff.kernels.limits import Limits
from roundoff.operators.attention.call import Call as Attention
from roundoff.operators.attention.operator import call_of
from roundoff.operators.protocol import Outputs, Problem

__all__ = ["FLEX"]

_COMPILED = "## Call CompiledFxGraph"


@cache
def _compiled() -> Callable[..., Tensor]:
    torch_: Any = torch  # whose `compile` has no complete type
    return torch_.compile(flex_attention, dynamic=False, fullgraph=True)


def _bind(problem: Problem) -> Call:
    attention, stored = call_of(problem), stored_inputs(problem)
    q, k, v = leaves = leaves_of(stored)
    grouped = q.shape[1] != k.shape[1]
    mask = _block_mask(attention, q.device)

    def call() -> Outputs:
        # Every shape and mask compiles anew; past dynamo's limit it would run eagerly instead.
        config: Any = torch._dynamo.config  # pyright: ignore[reportPrivateUsage]
        with config.patch(recompile_limit=2**16, accumulated_recompile_limit=2**16):
            out = _compiled()(
                q, k, v, block_mask=mask, scale=attention.scale, enable_gqa=grouped
            )  # fmt: skip
        return {"out": out}

    return with_gradients("torch-flex", call, leaves, stored.get("dout"))


def _block_mask(call: Attention, device: torch.device) -> Any:
    if call.mask.kind == "none":
        return None
    q_len, kv_len = call.lengths
    dense = call.mask.dense(call.lengths, device)
    assert dense is not None
    visible = dense.expand(1, 1, q_len, kv_len)[0, 0]

    def seen(_b: Tensor, _h: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return visible[row, key]

    return create_block_mask(seen, None, None, q_len, kv_len, device=str(device))


def _missing() -> str | None:
    if torch.cuda.is_available() or shutil.which("g++") or shutil.which("clang++"):
        return None
    return "no C++ compiler; install g++"


FLEX = Kernel(
    name="torch-flex",
    operator="attention",
    doc="FlexAttention, compiled (a new shape compiles for some seconds)",
    bind=_bind,
    missing=_missing,
    refuses=Limits(
        masks=("none", "causal", "causal-lower-right", "window"), gradients=("cuda",)
    ).refuse,
    expects=(_COMPILED,),
)
