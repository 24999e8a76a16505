"""`Kernel`: a callable that really computes an operator, and what it can and cannot do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from roundoff.errors import KernelError
from roundoff.formats import to_dtype
from roundoff.operators import OPERATORS
from roundoff.operators.protocol import Operator, Outputs, Problem
from roundoff.registry import is_installed

__all__ = [
    "Call",
    "Kernel",
    "check_outputs",
    "needs",
    "needs_cuda",
    "runs_anywhere",
    "stored_inputs",
    "takes",
]

Call = Callable[[], Outputs]
"""A kernel bound to its inputs: nothing is left to convert or to build, so it can be timed."""


def runs_anywhere() -> str | None:
    """The `missing` of a kernel that needs nothing but torch on the CPU."""
    return None


def needs_cuda() -> str | None:
    """The `missing` of a kernel that torch brings along for CUDA."""
    return None if torch.cuda.is_available() else "no CUDA device, or no CUDA build of torch"


def needs(*libraries: str, extra: str) -> Callable[[], str | None]:
    """The `missing` of a kernel of libraries that one extra of roundoff installs."""

    def missing() -> str | None:
        lacking = " and no ".join(name for name in libraries if not is_installed(name))
        return f"no {lacking}; pip install 'roundoff[{extra}]'" if lacking else None

    return missing


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A kernel of one operator.

    `bind` makes the call that computes all rows of a problem, in real dtypes. `missing` says
    why the kernel cannot run on this machine and what to install (None: it can); `refuses`
    why it cannot take this problem. `expects` are the events that a spy must see if this
    kernel, and no fallback, did the work (empty: nothing can be proved).

    For users' kernels, `source` is the digest of what decides their numbers, part of a cell's
    identity (a library's version is in the environment), and `settings` are torch's global
    settings as their module wants them, in force while they run.
    """

    name: str
    operator: str
    doc: str
    bind: Callable[[Problem], Call]
    missing: Callable[[], str | None] = runs_anywhere
    refuses: Callable[[Problem], str | None] = lambda _: None
    expects: tuple[str, ...] = ()
    source: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def run(self, problem: Problem) -> Outputs:
        """The outputs at all rows."""
        return self.bind(problem)()


def stored_inputs(problem: Problem) -> dict[str, Tensor]:
    """The inputs in the dtype of the problem's storage format (exact: they were rounded to it)."""
    return {
        name: x if x.dtype == torch.bool else to_dtype(x, problem.format)
        for name, x in problem.inputs.items()
    }


def takes(*formats: str) -> Callable[[Problem], str | None]:
    """The `refuses` of a kernel that is limited by nothing but storage formats."""

    def refuses(problem: Problem) -> str | None:
        if problem.format.name in formats:
            return None
        return f"format {problem.format.name} (takes {', '.join(formats)})"

    return refuses


def check_outputs(kernel: Kernel, outputs: Outputs, golden: Outputs, problem: Problem) -> None:
    """Refuse whole outputs whose names, shapes or dtype are not what the operator's are.

    The first output must have the storage format's dtype; others (an LSE) may be wider.
    """
    first = next(iter(golden))
    if first not in outputs:
        raise KernelError(f"kernel {kernel.name!r} returned no {first!r}")
    for name, x in outputs.items():
        if name not in golden:
            raise KernelError(
                f"kernel {kernel.name!r} returned {name!r}; expected {', '.join(golden)}"
            )
        shape = _whole_shape(name, golden[name], problem, OPERATORS[kernel.operator])
        if tuple(x.shape) != shape:
            raise KernelError(
                f"kernel {kernel.name!r} returned {name} of shape {tuple(x.shape)}; "
                f"expected {shape} (is --layout right?)"
            )
    if outputs[first].dtype != problem.format.dtype:
        raise KernelError(
            f"kernel {kernel.name!r} returned {first} as {outputs[first].dtype}; "
            f"expected {problem.format.dtype}, the dtype of its inputs"
        )


def _whole_shape(
    name: str, golden: Tensor, problem: Problem, operator: Operator
) -> tuple[int, ...]:
    """The shape of an output with all rows, of which golden has the sampled ones.

    The rows of the first input are numbered by the axis that numbers those of the first output.
    """
    shape = list(golden.shape)
    if problem.rows is not None and name in operator.row_axes:
        first = next(iter(problem.inputs.values()))
        shape[operator.row_axes[name]] = first.shape[operator.row_axes[operator.outputs[0]]]
    return tuple(shape)
