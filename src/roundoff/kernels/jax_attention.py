"""`jax.nn.dot_product_attention(implementation="xla")`, compiled for the CPU.

The proof: the program is compiled ahead of the call, and the event bears the name of the
compiled module and its platform. XLA is asked for by name, so that cuDNN cannot step in; what
XLA made of it (which products it gave to YNNPACK or Eigen) is in `compiled.as_text()`.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor

from roundoff.errors import KernelError
from roundoff.kernels.announced import announced
from roundoff.kernels.kernel import Call, Kernel, needs, stored_inputs
from roundoff.kernels.limits import Limits
from roundoff.operators.attention.call import Call as Attention
from roundoff.operators.attention.masks import Mask
from roundoff.operators.attention.operator import call_of
from roundoff.operators.protocol import Outputs, Problem
from roundoff.registry import require

__all__ = ["XLA"]

_MODULE = "jit_dot_product_attention"
_EVENT = "xla::"
_ON_GPU = "XLA_PYTHON_CLIENT_PREALLOCATE"
# fp16 compiles to a product that XLA has no CPU code for; fp64 would be narrowed to fp32.
_LIMITS = Limits(("bf16", "fp32"), other_v_dim=False, device="cpu")


@functools.cache
def _jax() -> Any:
    """JAX with its devices started, none of whose memory is taken in advance."""
    with _variable(_ON_GPU, "false"):
        jax = require("jax", extra="jax", purpose="kernel jax-xla")
        jax.devices("cpu")
    return jax


@contextlib.contextmanager
def _variable(name: str, value: str) -> Generator[None]:
    before = os.environ.get(name)
    os.environ[name] = value if before is None else before
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def _bind(problem: Problem) -> Call:
    jax, attention = _jax(), call_of(problem)
    stored = stored_inputs(problem)
    names = [name for name in ("q", "k", "v", "dout") if name in stored]
    arrays = [_array(jax, stored[name].transpose(1, 2)) for name in names]
    chosen = _masks(jax, attention.mask, attention.lengths)
    compiled = _compiled(jax, arrays, chosen, attention)

    def call() -> Outputs:
        found = jax.block_until_ready(compiled(*arrays, **chosen))
        named = zip(("out", "dq", "dk", "dv"), found, strict=False)
        return {name: torch.from_dlpack(x).transpose(1, 2) for name, x in named}

    return announced(f"{_EVENT}{_MODULE} cpu", call)


def _array(jax: Any, x: Tensor) -> Any:
    """The same bits as an array of JAX on its CPU; never its own memory's only name."""
    return jax.device_put(jax.dlpack.from_dlpack(x.contiguous()), jax.devices("cpu")[0])


def _masks(jax: Any, mask: Mask, lengths: tuple[int, int]) -> dict[str, Any]:
    """`is_causal` aligns at the upper left, so all other masks are given as tensors."""
    if mask.kind in ("none", "causal"):
        return {}
    dense = mask.dense(lengths, torch.device("cpu"))
    assert dense is not None
    array = _array(jax, dense.expand(1, 1, *dense.shape[-2:]) if dense.dim() == 2 else dense)
    return {"mask" if dense.dtype == torch.bool else "bias": array}


def _compiled(jax: Any, arrays: list[Any], masks: dict[str, Any], call: Attention) -> Any:
    attend = functools.partial(
        jax.nn.dot_product_attention,
        implementation="xla",
        scale=call.scale,
        is_causal=call.mask.kind == "causal",
    )

    def function(q: Any, k: Any, v: Any, dout: Any = None, **masks: Any) -> tuple[Any, ...]:
        """The output; and, where there is an upstream gradient, dQ, dK and dV."""
        if dout is None:
            return (attend(q, k, v, **masks),)
        out, pull = jax.vjp(functools.partial(attend, **masks), q, k, v)
        return out, *pull(dout)

    function.__name__ = jax.nn.dot_product_attention.__name__
    compiled = jax.jit(function).lower(*arrays, **masks).compile()
    found = str(compiled.as_text()).partition(",")[0].removeprefix("HloModule ")
    if found != _MODULE:
        raise KernelError(f"kernel 'jax-xla': XLA compiled {found!r}, not {_MODULE!r}")
    return compiled


def _refuses(problem: Problem) -> str | None:
    """JAX hides keys by a large finite number: a row that sees no key averages V, all of it."""
    if reason := _LIMITS.refuse(problem):
        return reason
    call = call_of(problem)
    dense = call.mask.dense(call.lengths, call.q.device)
    if dense is None:
        return None
    visible = dense if dense.dtype == torch.bool else dense > float("-inf")
    if bool(visible.any(-1).all()):
        return None
    return "a row that sees no key (takes rows that see one)"


XLA = Kernel(
    name="jax-xla",
    operator="attention",
    doc="jax.nn.dot_product_attention on XLA, compiled (a new shape compiles for a second)",
    bind=_bind,
    missing=needs("jax", extra="jax"),
    refuses=_refuses,
    expects=(f"{_EVENT}{_MODULE}",),
)
