"""`kernel`: what the author of an attention kernel says of it, beside its signature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from roundoff.errors import UsageError
from roundoff.formats import get_format
from roundoff.kernels.limits import ALL_MASKS, Limits

__all__ = ["Declared", "Layout", "declared_by", "kernel"]

Layout = Literal["bhsd", "bshd"]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Declared:
    """What a user says of a kernel: its layout and its limits."""

    layout: Layout = "bhsd"
    limits: Limits = field(default_factory=Limits)

    def given(self, layout: Layout | None, seq_multiple: int | None) -> Declared:
        """The same with what a command says instead."""
        limits = self.limits
        if seq_multiple is not None:
            limits = replace(limits, seq_multiple=seq_multiple)
        return Declared(layout or self.layout, limits)


def kernel(
    *,
    layout: Layout = "bhsd",
    formats: str | tuple[str, ...] = ("bf16", "fp16", "fp32"),
    head_dims: tuple[int, ...] | None = None,
    masks: str | tuple[str, ...] = ALL_MASKS,
    seq_multiple: int = 1,
    gradients: bool = True,
) -> Callable[[F], F]:
    """Declare what an attention kernel takes, where its signature cannot say it.

    `layout` is the order of the axes, bhsd [batch, heads, length, head_dim] or bshd; problems
    outside `formats`, `head_dims`, `masks` or multiples of `seq_multiple` are skipped and named,
    and those that ask for `gradients` where there are none.
    One format or one mask may stand alone.
    The function itself is not changed. A word that is none of these is a `UsageError`.

    >>> @kernel(layout="bshd", formats=("bf16",), head_dims=(64, 128))
    ... def mine(q, k, v, causal=False): ...
    """
    if layout not in ("bhsd", "bshd"):
        raise UsageError(f"layout {layout!r}: expected 'bhsd' or 'bshd'")
    masks = (masks,) if isinstance(masks, str) else tuple(masks)
    formats = (formats,) if isinstance(formats, str) else tuple(formats)
    formats = tuple(get_format(name).name for name in formats)
    if unknown := set(masks) - set(ALL_MASKS):
        raise UsageError(f"masks {sorted(unknown)}: expected some of {', '.join(ALL_MASKS)}")
    if seq_multiple < 1:
        raise UsageError(f"seq_multiple {seq_multiple}: expected at least 1")
    on = ("cpu", "cuda") if gradients else ()
    limits = Limits(formats, head_dims, masks, seq_multiple, gradients=on)

    def declare(function: F) -> F:
        function.__dict__["__roundoff__"] = Declared(layout, limits)
        return function

    return declare


def declared_by(function: Callable[..., Any]) -> Declared:
    """What was declared for `function`; the defaults where nothing was."""
    declared = getattr(function, "__roundoff__", None)
    return declared if isinstance(declared, Declared) else Declared()
