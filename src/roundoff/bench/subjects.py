"""From a subject's name to something that runs: a recipe, a registered kernel, a user's kernel."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from roundoff.errors import UnknownNameError, UnsupportedError, UsageError
from roundoff.intercept.spy import require_event, spy
from roundoff.kernels import KERNELS, kernels_of
from roundoff.kernels.kernel import Kernel, check_outputs
from roundoff.kernels.user import user_kernel
from roundoff.operators.protocol import Operator, Outputs, Problem
from roundoff.records import SubjectName
from roundoff.sites import wire

__all__ = ["KernelSubject", "RecipeSubject", "Result", "resolve_subject"]

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
        """The recipe's fields: a changed catalogue entry is another cell."""
        return {"recipe": {name: wire(v) for name, v in self.operator.fields(self.recipe).items()}}

    def refuses(self, problem: Problem) -> str | None:
        """A recipe takes every problem of its operator."""
        return None

    def run(self, problem: Problem, golden: Outputs) -> Result:
        """Compute the problem's rows."""
        outputs, probes = self.operator.run(self.recipe, problem)
        return Result(outputs, probes)


@dataclass(frozen=True, slots=True)
class KernelSubject:
    """A real kernel as something to measure."""

    operator: Operator
    kernel: Kernel
    options: SubjectName

    def fingerprint(self) -> dict[str, Any]:
        """The name, for users' kernels the source, and how it is called."""
        options = dataclasses.asdict(self.options)
        return {"kernel": self.kernel.name, "source": self.kernel.source} | options

    def refuses(self, problem: Problem) -> str | None:
        """Why the kernel cannot take this problem."""
        return self.kernel.refuses(problem)

    def run(self, problem: Problem, golden: Outputs) -> Result:
        """Compute all rows, prove what ran, check the outputs, and take the problem's rows."""
        whole, events = spy(lambda: self.kernel.run(problem))
        proof = require_event(self.kernel.name, self.kernel.expects, events)
        outputs = self.operator.take_rows(whole, problem)
        check_outputs(self.kernel, outputs, golden, problem)
        return Result(outputs, ran=tuple(proof))


def resolve_subject(operator: Operator, name: SubjectName) -> RecipeSubject | KernelSubject:
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
    return KernelSubject(operator, kernel, name)
