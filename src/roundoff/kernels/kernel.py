"""`Kernel`: a callable that really computes an operator, and what it can and cannot do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from roundoff.errors import KernelError
from roundoff.formats import to_dtype
from roundoff.operators.protocol import Outputs, Problem

__all__ = ["Kernel", "check_outputs", "runs_anywhere", "stored_inputs"]


def runs_anywhere() -> str | None:
    """For kernels that need nothing but torch on the CPU."""
    return None


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel of one operator.

    `run` computes all rows of a problem, in real dtypes. `missing` says why the kernel
    cannot run on this machine and what to install (None: it can); `refuses` why it cannot
    take this problem. `expects` are the events that a spy must see if this kernel, and no
    fallback, did the work (empty: nothing can be proved). `source` is the digest of a
    user's source, part of a cell's identity; a library's version is in the environment.
    """

    name: str
    operator: str
    doc: str
    run: Callable[[Problem], Outputs]
    missing: Callable[[], str | None] = runs_anywhere
    refuses: Callable[[Problem], str | None] = lambda _: None
    expects: tuple[str, ...] = ()
    source: str = ""


def stored_inputs(problem: Problem) -> dict[str, Tensor]:
    """The inputs in the dtype of the problem's storage format (exact: they were rounded to it)."""
    return {
        name: x if x.dtype == torch.bool else to_dtype(x, problem.format)
        for name, x in problem.inputs.items()
    }


def check_outputs(kernel: Kernel, outputs: Outputs, golden: Outputs, problem: Problem) -> None:
    """Refuse outputs of another shape than golden's, or of another dtype than the inputs'.

    The first output must have the storage format's dtype; others (an LSE) may be wider.
    """
    first = next(iter(golden))
    if first not in outputs:
        raise KernelError(f"kernel {kernel.name!r} returned no {first!r}")
    for name, x in outputs.items():
        if tuple(x.shape) != tuple(golden[name].shape):
            raise KernelError(
                f"kernel {kernel.name!r} returned {name} of shape {tuple(x.shape)}; "
                f"expected {tuple(golden[name].shape)} (is --layout right?)"
            )
    wanted = to_dtype(torch.zeros(()), problem.format).dtype
    if outputs[first].dtype != wanted:
        raise KernelError(
            f"kernel {kernel.name!r} returned {first} as {outputs[first].dtype}; "
            f"expected {wanted}, the dtype of its inputs"
        )
