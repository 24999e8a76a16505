"""Variants: ways to run a model that leave the model as it is.

A variant is entered for a block of code and gives the model to call in it: the same one
under another attention or format, or a patched copy with the same weights.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from roundoff.errors import KernelError, UsageError
from roundoff.intercept.swap import AttentionFunction, swapped
from roundoff.state.wrappers import unwrapped_name

__all__ = [
    "AS_IT_IS",
    "AUTOCAST",
    "Patch",
    "Variant",
    "Way",
    "attended",
    "autocast",
    "parameters",
    "patched",
    "variant",
]

Patch = Callable[[nn.Module], Any]
"""Changes a model in place, or returns another one that computes the same (`torch.compile`)."""

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


Entered = Callable[[nn.Module], AbstractContextManager[nn.Module]]


@dataclass(frozen=True)
class Variant:
    """A named way to run a model.

    `entered(model)` is a context that gives the model to call, and leaves `model` as it is.
    `trained(model)` is one for a model that trains under the variant from now on; it may change it.
    One that is `over`, entered while another is in force, takes that one's place.
    """

    name: str
    entered: Entered
    trained: Entered
    over: bool = False


AS_IT_IS = Variant("as it is", contextlib.nullcontext, contextlib.nullcontext)


Way = Variant | Patch | AttentionFunction | str | None
"""What names a variant: itself, a patch, an attention by name or as a function; None: as it is."""


def variant(way: Way) -> Variant:
    """What `way` means: a variant, an attention by name or as a function, a patch; None: as it is.

    >>> variant(None).name
    'as it is'
    """
    if way is None:
        return AS_IT_IS
    if isinstance(way, Variant):
        return way
    if isinstance(way, str | AttentionFunction):
        return attended(way)
    return patched(way)


def attended(attention: AttentionFunction | str) -> Variant:
    """Another attention: a kernel, a recipe (also at a format, as `fa2@bf16`), or the user's."""
    name = attention if isinstance(attention, str) else attention.name

    @contextlib.contextmanager
    def entered(model: nn.Module) -> Generator[nn.Module]:
        with swapped(model, attention):
            yield model

    return Variant(name, entered, entered, over=True)


def autocast(format: str) -> Variant:
    """Torch's autocast to `bf16` or `fp16`, or off for `fp32`; the weights stay as they are."""
    if format not in (*AUTOCAST, "fp32"):
        raise UsageError(f"autocast to {format!r}; expected {', '.join(AUTOCAST)} or fp32")

    @contextlib.contextmanager
    def entered(model: nn.Module) -> Generator[nn.Module]:
        device = next(model.parameters()).device.type
        with torch.autocast(device, AUTOCAST.get(format), enabled=format in AUTOCAST):
            yield model

    return Variant(format, entered, entered)


def patched(patch: Patch, name: str | None = None) -> Variant:
    """A copy of the model that `patch` has changed, given the model's weights at every entry.

    Frozen weights too, where the copy still has them in floating point: a patch may store them
    otherwise. A model that trains under it is changed itself, and keeps its parameters.

    Errors: `KernelError` where the patched copy has no parameters of the model's names and shapes,
    where the patch wrote other values into them, which the next entry would overwrite,
    and where the patch gives a model in training other parameters, which its optimizer has not.
    """
    copies: dict[int, tuple[nn.Module, nn.Module]] = {}

    @contextlib.contextmanager
    def entered(model: nn.Module) -> Generator[nn.Module]:
        if id(model) not in copies:
            made = _result(patch, copy.deepcopy(model))
            _refuse_other_values(model, made)
            copies[id(model)] = model, made
        twin = copies[id(model)][1]
        twin.train(model.training)
        _copy_weights(model, twin)
        yield twin

    @contextlib.contextmanager
    def trained(model: nn.Module) -> Generator[nn.Module]:
        before = {id(p): n for n, p in parameters(model).items()}
        changed = _result(patch, model)
        lost = [before[i] for i in before.keys() - {id(p) for p in changed.parameters()}]
        if lost:
            raise KernelError(
                f"the patch replaced {lost[0]} and {len(lost) - 1} more parameters, which the "
                "optimizer has; let it keep the model's own parameters"
            )
        yield changed

    return Variant(name or getattr(patch, "__name__", "patched"), entered, trained)


def _result(patch: Patch, model: nn.Module) -> nn.Module:
    """The patched model: what the patch returns, or the model itself, changed."""
    returned = patch(model)
    return returned if isinstance(returned, nn.Module) else model


def _refuse_other_values(model: nn.Module, made: nn.Module) -> None:
    """A patch that rounds the weights once would be measured without its rounding: "identical"."""
    theirs = parameters(made)
    for name, x in parameters(model).items():
        y = theirs.get(name)
        if y is None or (y.shape, y.dtype) != (x.shape, x.dtype):
            continue
        if bool(((x != y) & ~x.isnan()).any()):
            raise KernelError(
                f"the patch writes other values into {name}, but its copy is given the model's "
                "weights at every sample; round them where they are used, in the forward pass"
            )


def _copy_weights(source: nn.Module, target: nn.Module) -> None:
    theirs = parameters(target) | _buffers(target)
    for name, x in (parameters(source) | _buffers(source)).items():
        y = theirs.get(name)
        if y is None or y.shape != x.shape:
            has = "none of that name" if y is None else f"{tuple(y.shape)}"
            raise KernelError(
                f"the patched model's {name} should be {tuple(x.shape)}, but has {has}"
            )
        y.data.copy_(x.data)
    own = {unwrapped_name(name): p for name, p in target.named_parameters()}
    for name, x in source.named_parameters():
        y = own.get(unwrapped_name(name))
        if not x.requires_grad and y is not None and y.shape == x.shape and y.is_floating_point():
            y.data.copy_(x.data)


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {unwrapped_name(name): b for name, b in model.named_buffers()}


def parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained, by names without the prefixes of wrappers.

    >>> list(parameters(torch.compile(torch.nn.Linear(2, 2))))
    ['weight', 'bias']
    """
    return {unwrapped_name(name): p for name, p in model.named_parameters() if p.requires_grad}
