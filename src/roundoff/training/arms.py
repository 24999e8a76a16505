"""Arms: training runs that differ from the baseline in one thing each. `FORMS` says which."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from roundoff.errors import UnknownNameError, UsageError
from roundoff.intercept.attention import attention_function
from roundoff.kernels import kernels_of
from roundoff.kernels.loading import load
from roundoff.operators.attention.catalogue import RECIPES
from roundoff.training.variants import AS_IT_IS, AUTOCAST, Variant, attended, patched

__all__ = ["CONTROLS", "FORMATS", "FORMS", "Arm", "parse_arm", "parse_arms", "variant_named"]

Change = Literal["nothing", "ulp", "data order", "initial seed", "format", "model"]

CONTROLS: dict[str, Change] = {
    "rerun": "nothing", "ulp": "ulp", "data-order": "data order", "seed": "initial seed",
}  # fmt: skip
FORMATS = ("fp32", *AUTOCAST)
FORMS = {
    "rerun": "nothing: how far the machine is from repeating itself",
    "ulp": "one weight, by one unit in the last place: the one whose ulp the loss feels most",
    "data-order": "the same batches in another order",
    "seed": "another initial seed",
    "fp32": "autocast off",
    "bf16": "autocast to bf16",
    "fp16": "autocast to fp16, with loss scaling",
    "ATTENTION": "a kernel or a recipe, also at a format: fa2, fa2@bf16, torch-cpu-flash",
    "module:function": "a patch of the model, or an attention of yours, by its parameters",
    "ARM@STEP": "the same, but only from step STEP on: a branch off the baseline",
}
"""What names an arm, and what that arm differs in from the baseline."""


@dataclass(frozen=True)
class Arm:
    """One difference from the baseline: what changes, the variant that does it, and from when.

    `format` is that of autocast, None for the baseline's; `start` the step from which the
    arm is a run of its own.
    """

    name: str
    change: Change
    variant: Variant = AS_IT_IS
    format: str | None = None
    start: int = 0

    @property
    def is_candidate(self) -> bool:
        """Whether it changes how a step is computed, so that it has a direct error."""
        return self.change in ("format", "model")


def parse_arms(texts: Iterable[str]) -> tuple[Arm, ...]:
    """The arms of some texts, each once."""
    return tuple(parse_arm(text) for text in dict.fromkeys(texts))


def parse_arm(text: str) -> Arm:
    """The arm that a text such as `fa2@bf16`, `ulp@100` or `mine.py:patch` means.

    Errors: `UnknownNameError`, and whatever is wrong with the user's function.

    >>> parse_arm("ulp@100").start, parse_arm("data-order").change, parse_arm("bf16").format
    (100, 'data order', 'bf16')
    """
    match = re.fullmatch(r"(.+)@(\d+)", text, re.ASCII)
    plain, start = (match[1], int(match[2])) if match else (text, 0)
    if plain in CONTROLS:
        if start and plain in ("seed", "data-order"):
            raise UsageError(f"{text!r}: {plain} begins with the run; expected it without @{start}")
        return Arm(text, CONTROLS[plain], start=start)
    if plain in FORMATS:
        return Arm(text, "format", format=plain, start=start)
    return Arm(text, "model", variant_named(plain), start=start)


def variant_named(name: str) -> Variant:
    """The variant of an attention's name, or of the user's function.

    A function that can be called with three arguments (q, k, v) is an attention, one of a
    single argument a patch.
    """
    if ":" not in name:
        plain = name.rpartition("@")[0] or name
        known = [*(kernel.name for kernel in kernels_of("attention")), *RECIPES]
        if plain not in known:
            raise UnknownNameError("arm", name, [*CONTROLS, *FORMATS, *known])
        return attended(attention_function(name))
    head, _, rest = name.partition(":")
    if head in ("kernel", "recipe"):
        return attended(attention_function(rest, kind="kernel" if head == "kernel" else "recipe"))
    function = load(name.rpartition("@")[0] if "@" in name else name).function
    if _takes(function, 1) and not _takes(function, 3):
        return patched(function, name)
    return attended(attention_function(name))


def _takes(function: object, arguments: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * arguments)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True
