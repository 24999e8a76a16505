"""Any `module:function` (or `path/to/file.py:function`) of the user's as a kernel.

The function gets the operator's inputs in their dtype, in the operator's order; a tensor
that it returns, or the first of a tuple, is the operator's first output. Attention adds
what `user_attention` reads off the signature.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from roundoff.errors import KernelError
from roundoff.kernels.declared import Declared, Layout, declared_by, kernel
from roundoff.kernels.gradients import with_gradients
from roundoff.kernels.kernel import Call, Kernel, stored_inputs, takes
from roundoff.kernels.loading import load
from roundoff.kernels.user_attention import bind_attention, refuse_attention
from roundoff.operators import OPERATORS
from roundoff.operators.protocol import Problem

__all__ = ["function_kernel", "kernel", "user_kernel"]

Bind = Callable[[Problem, dict[str, Tensor]], tuple[Callable[[], Any], list[Tensor]]]


@cache
def user_kernel(
    place: str, operator: str, *, layout: Layout | None = None, seq_multiple: int | None = None
) -> Kernel:
    """The function at `place` as a kernel of `operator`; arguments override its declaration.

    Raises `UsageError` if it cannot be imported, `UnknownNameError` if it is not there.
    """
    loaded = load(place)
    declared = declared_by(loaded.function).given(layout, seq_multiple)
    made = function_kernel(loaded.function, operator, name=place, declared=declared)
    source = f"{loaded.name} {declared.layout} {loaded.source}"
    return replace(made, source=source, settings=loaded.settings)


def function_kernel(
    function: Callable[..., Any], operator: str, *, name: str = "", declared: Declared | None = None
) -> Kernel:
    """`function` as a kernel of `operator`, as it is declared; its source is not looked at."""
    name = name or getattr(function, "__name__", "kernel")
    declared = declared or declared_by(function)
    output = OPERATORS[operator].outputs[0]

    def begin(
        problem: Problem, stored: dict[str, Tensor]
    ) -> tuple[Callable[[], Any], list[Tensor]]:
        if operator == "attention":
            return bind_attention(function, declared, problem, stored)
        return lambda: function(*stored.values()), []

    def refuses(problem: Problem) -> str | None:
        if operator == "attention":
            return refuse_attention(function, declared, problem)
        return takes(*declared.limits.formats)(problem)

    return Kernel(
        name=name, operator=operator, doc=inspect.getdoc(function) or "a kernel of yours",
        bind=lambda problem: _bound(name, output, begin, problem), refuses=refuses,
    )  # fmt: skip


def _bound(place: str, output: str, begin: Bind, problem: Problem) -> Call:
    stored = _own_inputs(problem)
    call, leaves = begin(problem, stored)
    forward: Call = lambda: {output: _tensor(place, call())}  # noqa: E731
    return with_gradients(place, forward, leaves, stored.get("dout"))


def _own_inputs(problem: Problem) -> dict[str, Tensor]:
    """The stored inputs, never the problem's own tensors: a kernel may write into what it gets."""
    stored = stored_inputs(problem)
    given = {x.data_ptr() for x in problem.inputs.values()}
    return {name: x.clone() if x.data_ptr() in given else x for name, x in stored.items()}


def _tensor(place: str, result: object) -> Tensor:
    first: Any = result
    if isinstance(result, tuple | list) and result:
        first = cast("list[Any]", result)[0]
    if not isinstance(first, Tensor):
        raise KernelError(
            f"kernel {place!r} returned a {type(first).__name__}; "
            "expected a tensor, or a tuple that begins with one"
        )
    return first if first.requires_grad and torch.is_grad_enabled() else first.detach()
