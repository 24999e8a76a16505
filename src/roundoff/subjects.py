"""From a subject's name to something that runs: a recipe, a registered kernel, a user's kernel."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

from roundoff.errors import (
    KernelError,
    RoundoffError,
    UnknownNameError,
    UnsupportedError,
    UsageError,
    in_one_line,
)
from roundoff.intercept.spy import require_event, spy
from roundoff.kernels import KERNELS, kernels_of
from roundoff.kernels.kernel import Call, Kernel, check_outputs
from roundoff.kernels.settings import kept
from roundoff.kernels.user import user_kernel
from roundoff.operators.protocol import Operator, Outputs, Problem
from roundoff.records import SubjectName
from roundoff.sites import wire

__all__ = ["KernelSubject", "RecipeSubject", "Result", "Subject", "in_one_line", "resolve_subject"]

REORDERED = "~reordered"
"""Suffix of a recipe's name: the same recipe with its sums in another order."""


@dataclass(frozen=True, slots=True)
class Result:
    """Outputs at the problem's rows, probes, and the events that prove what ran."""

    outputs: Outputs
    probes: dict[str, float] = field(default_factory=dict[str, float])
    ran: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RecipeSubject:
    """A recipe as something to measure."""

    operator: Operator
    recipe: Any

    def fingerprint(self) -> dict[str, Any]:
        """The name and the fields: a changed catalogue entry is another cell."""
        fields = self.operator.fields(self.recipe)
        return {"recipe": self.recipe.name, "fields": {n: wire(v) for n, v in fields.items()}}

    def refuses(self, problem: Problem) -> str | None:  # noqa: ARG002
        """A recipe takes every problem of its operator."""
        return None

    def bind(self, problem: Problem) -> Callable[[], object]:
        """The call to be timed."""
        return lambda: self.operator.run(self.recipe, problem)

    def settings(self) -> AbstractContextManager[None]:
        """Around every call."""
        return nullcontext()

    def run(self, problem: Problem, golden: Outputs) -> Result:  # noqa: ARG002
        """Compute the problem's rows."""
        outputs, probes = self.operator.run(self.recipe, problem)
        return Result(outputs, probes)


@dataclass(frozen=True, slots=True)
class KernelSubject:
    """A real kernel as something to measure."""

    operator: Operator
    kernel: Kernel

    def fingerprint(self) -> dict[str, Any]:
        """A library's kernel by name; a user's by source, function and layout, wherever it lies."""
        return {"kernel": self.kernel.source or self.kernel.name}

    def refuses(self, problem: Problem) -> str | None:
        """Why the kernel cannot take this problem."""
        return self.kernel.refuses(problem)

    def bind(self, problem: Problem) -> Callable[[], object]:
        """The call to be timed."""
        return self.kernel.bind(problem)

    def settings(self) -> AbstractContextManager[None]:
        """Around every call: the kernel's settings in force, and nothing of it left behind."""
        return kept(self.kernel.settings)

    def run(self, problem: Problem, golden: Outputs) -> Result:
        """Compute all rows, prove what ran, check the outputs, and take the problem's rows."""
        with self.settings():
            whole, events = self._spied(self.kernel.bind(problem))
        proof = require_event(self.kernel.name, self.kernel.expects, events)
        check_outputs(self.kernel, whole, golden, problem)
        return Result(self.operator.take_rows(whole, problem), ran=tuple(proof))

    def _spied(self, call: Call) -> tuple[Outputs, list[str]]:
        try:
            with redirect_stdout(sys.stderr):  # standard output is for the command's document
                return spy(call)
        except (RoundoffError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a SystemExit too: it must cost this cell alone
            raise KernelError(f"kernel {self.kernel.name!r} raised {in_one_line(error)}") from error


Subject = RecipeSubject | KernelSubject


def resolve_subject(operator: Operator, name: SubjectName) -> Subject:
    """The subject that `name` means, or an error that says what is missing."""
    if name.kind == "recipe":
        plain, reordered, _ = name.name.partition(REORDERED)
        recipe = operator.recipes[plain]
        return RecipeSubject(operator, operator.reordered(recipe) if reordered else recipe)
    if name.name in KERNELS:
        kernel = KERNELS[name.name]
        if kernel.operator != operator.name:
            raise UsageError(
                f"kernel {name.name!r} computes {kernel.operator}, not {operator.name}"
            )
    elif ":" in name.name:
        kernel = user_kernel(
            name.name, operator.name, layout=name.layout, seq_multiple=name.seq_multiple
        )
    else:
        raise UnknownNameError("kernel", name.name, [k.name for k in kernels_of(operator.name)])
    missing = kernel.missing()
    if missing:
        raise UnsupportedError(f"kernel {name.name!r} cannot run here: {missing}")
    return KernelSubject(operator, kernel)
