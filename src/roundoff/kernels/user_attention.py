"""Call a user's attention function as its signature asks: layout, causal, scale, mask."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from roundoff.kernels.declared import Declared
from roundoff.kernels.gradients import leaves_of
from roundoff.operators.attention.operator import call_of
from roundoff.operators.protocol import Problem

__all__ = ["bind_attention", "refuse_attention"]

_CAUSAL = ("causal", "is_causal")
_SCALE = ("scale", "softmax_scale", "sm_scale")
_MASK = ("attn_mask", "mask", "attention_mask")


def refuse_attention(
    function: Callable[..., Any], declared: Declared, problem: Problem
) -> str | None:
    """What the problem asks for and the function does not take, or has no parameter for."""
    if reason := declared.limits.refuse(problem):
        return reason
    known = _parameters(function)
    call = call_of(problem)
    masked = _first(_MASK, known)
    if call.mask.kind == "causal" and not (masked or _first(_CAUSAL, known)):
        return "mask causal (the function has no parameter 'causal' or 'attn_mask')"
    if call.mask.kind not in ("none", "causal") and not masked:
        return f"mask {call.mask.kind} (the function has no parameter 'attn_mask')"
    if problem.parameters["scale"] is not None and not _first(_SCALE, known):
        return "a scale of its own (the function has no parameter 'scale')"
    return None


def bind_attention(
    function: Callable[..., Any], declared: Declared, problem: Problem, stored: dict[str, Tensor]
) -> tuple[Callable[[], object], list[Tensor]]:
    """The call of `function` with its arguments made, and q, k, v, that gradients are taken by.

    The result of the call is laid out as ours.
    """
    turned = declared.layout == "bshd"
    arguments = leaves_of(stored)
    given = [_turned(x).contiguous() for x in arguments] if turned else arguments
    extras = _extras(_parameters(function), problem, stored)

    def call() -> object:
        first: Any = function(*given, **extras)
        if isinstance(first, tuple | list) and first:
            first = cast("list[Any]", first)[0]
        if turned and isinstance(first, Tensor) and first.ndim == 4:
            return _turned(first)
        return cast("object", first)

    return call, arguments


def _extras(known: set[str], problem: Problem, stored: dict[str, Tensor]) -> dict[str, Any]:
    call = call_of(problem)
    extras: dict[str, Any] = {}
    if problem.parameters["scale"] is not None and (name := _first(_SCALE, known)):
        extras[name] = call.scale
    if call.mask.kind == "causal" and (name := _first(_CAUSAL, known)):
        return extras | {name: True}
    dense = call.mask.dense(call.lengths, call.q.device)
    if dense is None or not (name := _first(_MASK, known)):
        return extras
    dense = dense if dense.dtype == torch.bool else dense.to(stored["q"].dtype)
    return extras | {name: dense.clone()}


def _parameters(function: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return set()  # a C function says nothing: it gets the inputs alone


def _first(names: tuple[str, ...], known: set[str]) -> str | None:
    return next((name for name in names if name in known), None)


def _turned(x: Tensor) -> Tensor:
    return x.transpose(1, 2)
