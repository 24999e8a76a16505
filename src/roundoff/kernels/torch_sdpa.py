"""torch's scaled_dot_product_attention: one row of the table for each of its back-ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from roundoff.kernels.gradients import leaves_of, with_gradients
from roundoff.kernels.kernel import Call, Kernel, needs_cuda, runs_anywhere, stored_inputs
from roundoff.kernels.limits import Limits
from roundoff.operators.attention.masks import Mask
from roundoff.operators.attention.operands import shared_heads
from roundoff.operators.attention.operator import call_of
from roundoff.operators.protocol import Outputs, Problem

__all__ = [
    "CPU_FLASH",
    "CUDA_CUDNN",
    "CUDA_EFFICIENT",
    "CUDA_FLASH",
    "MATH",
    "MATH_REDUCED",
    "backends_enabled",
    "kernel_chosen",
]

_PROOF = "aten::_scaled_dot_product_"


Bind = Callable[[Problem], Call]


def _sdpa(name: str, backend: SDPBackend, *, reduced: bool = False) -> Bind:
    def bind(problem: Problem) -> Call:
        attention, stored = call_of(problem), stored_inputs(problem)
        q, k, v = leaves = leaves_of(stored)
        is_causal, mask = _mask_arguments(attention.mask, attention.lengths, q)

        def call() -> Outputs:
            with sdpa_kernel(backend), _reduction(reduced):
                out = functional.scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, is_causal=is_causal, scale=attention.scale,
                    enable_gqa=q.shape[1] != k.shape[1],
                )  # fmt: skip
            return {"out": out}

        return with_gradients(name, call, leaves, stored.get("dout"))

    return bind


def kernel_chosen(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool, scale: float
) -> str | None:
    """The kernel that torch itself would take; None where it is not one of these."""
    library: Any = torch
    gqa = q.shape[1] != k.shape[1]
    found = library._fused_sdp_choice(q, k, v, mask, 0.0, causal, scale=scale, enable_gqa=gqa)
    flash = "torch-cpu-flash" if q.device.type == "cpu" else "torch-cuda-flash"
    kernels = {
        SDPBackend.MATH: "torch-math",
        SDPBackend.EFFICIENT_ATTENTION: "torch-cuda-efficient",
        SDPBackend.FLASH_ATTENTION: flash,
    }
    return kernels.get(SDPBackend(found))


def backends_enabled() -> tuple[SDPBackend, ...]:
    """The back-ends that torch may choose from here, as `sdpa_kernel` takes them."""
    cuda = torch.backends.cuda
    asked = {
        SDPBackend.MATH: cuda.math_sdp_enabled,
        SDPBackend.FLASH_ATTENTION: cuda.flash_sdp_enabled,
        SDPBackend.EFFICIENT_ATTENTION: cuda.mem_efficient_sdp_enabled,
        SDPBackend.CUDNN_ATTENTION: cuda.cudnn_sdp_enabled,
    }
    return tuple(backend for backend, enabled in asked.items() if enabled())


@contextlib.contextmanager
def _reduction(allowed: bool) -> Generator[None]:
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(allowed)
    try:
        yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def _mask_arguments(mask: Mask, lengths: tuple[int, int], q: Tensor) -> tuple[bool, Tensor | None]:
    """(is_causal, attn_mask) as torch takes them; torch's `is_causal` aligns at the upper left."""
    if mask.kind == "causal":
        return True, None
    dense = mask.dense(lengths, q.device)
    if dense is not None and dense.dtype != torch.bool:
        dense = dense.to(q.dtype)
    return False, dense


def _cpu_flash(problem: Problem) -> Call:
    """The operator that SDPA dispatches to on a CPU, called directly since it returns LSE too.

    For gradients SDPA itself is called: how it adds up those of shared heads is its own affair.
    """
    if "dout" in problem.inputs:
        return _sdpa("torch-cpu-flash", SDPBackend.FLASH_ATTENTION)(problem)
    attention, stored = call_of(problem), stored_inputs(problem)
    q, k, v = (stored[name] for name in "qkv")
    k, v = shared_heads(k, q.shape[1]), shared_heads(v, q.shape[1])
    is_causal, mask = _mask_arguments(attention.mask, attention.lengths, q)
    if mask is not None and mask.dtype == torch.bool:
        # SDPA itself turns a boolean mask into this before it dispatches.
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, float("-inf"))

    def call() -> Outputs:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, is_causal, attn_mask=mask, scale=attention.scale
        )
        return {"out": out, "lse": lse}

    return call


def _row(
    name: str, doc: str, bind: Bind, event: str, limits: Limits,
    *, missing: Callable[[], str | None] = runs_anywhere,
) -> Kernel:  # fmt: skip
    return Kernel(
        name=name, operator="attention", doc=doc, bind=bind, missing=missing,
        refuses=limits.refuse, expects=(_PROOF + event,),
    )  # fmt: skip


MATH = _row(
    "torch-math", "torch's math back-end: fp32 inside, one cast at the end",
    _sdpa("torch-math", SDPBackend.MATH), "attention_math",
    Limits(("bf16", "fp16", "fp32", "fp64")),
)  # fmt: skip
MATH_REDUCED = _row(
    "torch-math-reduced", "torch's math back-end with 16-bit intermediate tensors",
    _sdpa("torch-math-reduced", SDPBackend.MATH, reduced=True), "attention_math",
    Limits(("bf16", "fp16")),
)  # fmt: skip
CPU_FLASH = _row(
    "torch-cpu-flash", "torch's flash attention for CPUs",
    _cpu_flash, "flash_attention_for_cpu",
    Limits(("bf16", "fp16", "fp32", "fp64"), other_v_dim=False, device="cpu"),
)  # fmt: skip
_STRUCTURED = ("none", "causal", "boolean", "additive")
CUDA_FLASH = _row(
    "torch-cuda-flash", "torch's FlashAttention-2 for CUDA",
    _sdpa("torch-cuda-flash", SDPBackend.FLASH_ATTENTION), "flash_attention",
    Limits(("bf16", "fp16"), masks=("none", "causal"), other_v_dim=False, device="cuda"),
    missing=needs_cuda,
)  # fmt: skip
CUDA_EFFICIENT = _row(
    "torch-cuda-efficient", "torch's memory-efficient attention (cutlass) for CUDA",
    _sdpa("torch-cuda-efficient", SDPBackend.EFFICIENT_ATTENTION), "efficient_attention",
    Limits(masks=_STRUCTURED, grouped_heads=False, device="cuda"), missing=needs_cuda,
)  # fmt: skip
CUDA_CUDNN = _row(
    "torch-cuda-cudnn", "cuDNN's attention as torch calls it",
    _sdpa("torch-cuda-cudnn", SDPBackend.CUDNN_ATTENTION), "cudnn_attention",
    Limits(("bf16", "fp16"), masks=_STRUCTURED, device="cuda"), missing=needs_cuda,
)  # fmt: skip
