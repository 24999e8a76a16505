"""What is ablated: a recipe, or a kernel through a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from roundoff.errors import UnknownNameError, UnsupportedError, UsageError
from roundoff.kernels import KERNELS, kernels_of
from roundoff.kernels.kernel import Kernel
from roundoff.kernels.user import function_kernel
from roundoff.operators.protocol import Operator
from roundoff.records import SubjectName
from roundoff.subjects import KernelSubject, resolve_subject

__all__ = ["Ablated", "ablated"]


@dataclass(frozen=True, slots=True)
class Ablated:
    """A recipe, the kernel that it stands for (None: nothing but itself), and what to tell."""

    recipe: Any
    kernel: KernelSubject | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`kernel:NAME` or `recipe:NAME`."""
        if self.kernel is None:
            return f"recipe:{self.recipe.name}"
        return f"kernel:{self.kernel.kernel.name}"


def ablated(operator: Operator, subject: Any, *, recipe: str | None = None) -> Ablated:
    """The recipe or kernel that `subject` means, by value or by name, or the function.

    A kernel that cannot run here is ablated as its recipe alone, with a note that says so.
    """
    if callable(subject) and not hasattr(subject, "sites"):
        subject = function_kernel(subject, operator.name)
    if isinstance(subject, Kernel):
        return Ablated(_recipe_of(operator, subject.name, recipe), KernelSubject(operator, subject))
    if not isinstance(subject, str | SubjectName):
        return Ablated(_alone(subject, recipe))
    name = subject if isinstance(subject, SubjectName) else _name(operator, subject)
    if name.kind == "recipe":
        return Ablated(_alone(operator.recipes[name.name], recipe))
    try:
        kernel = resolve_subject(operator, name)
    except UnsupportedError as error:
        if recipe is not None or name.name not in operator.recipes:
            raise
        return Ablated(operator.recipes[name.name], notes=(f"{error}: its recipe alone",))
    assert isinstance(kernel, KernelSubject)
    return Ablated(_recipe_of(operator, name.name, recipe), kernel)


def _name(operator: Operator, text: str) -> SubjectName:
    """A kernel where one has the name (or it names a function), else a recipe."""
    name = SubjectName.parse(text)
    if text.startswith(("kernel:", "recipe:")) or ":" in text or name.name in KERNELS:
        return name
    if name.name in operator.recipes:
        return SubjectName("recipe", name.name)
    known = [*operator.recipes, *(k.name for k in kernels_of(operator.name))]
    raise UnknownNameError("recipe or kernel", text, dict.fromkeys(known))


def _alone(recipe: Any, other: str | None) -> Any:
    if not hasattr(recipe, "sites"):
        raise UsageError(
            f"cannot ablate a {type(recipe).__name__}; expected a recipe, a kernel, or a name"
        )
    if other is not None:
        raise UsageError(f"{recipe.name!r} is a recipe already; leave --recipe {other} away")
    return recipe


def _recipe_of(operator: Operator, kernel: str, recipe: str | None) -> Any:
    if recipe is None and kernel not in operator.recipes:
        raise UsageError(
            f"kernel {kernel!r} has no recipe of its name; say which it follows with --recipe NAME "
            "(roundoff list recipes)"
        )
    return operator.recipes[recipe or kernel]
