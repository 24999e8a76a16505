"""From what a user asks of a monitor to its sources; all that is refused is refused here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from roundoff.errors import UnsupportedError, UsageError
from roundoff.live.activations import Activations
from roundoff.live.attention import AttentionCalls
from roundoff.live.sources import Source, Tensors
from roundoff.live.watch import DEFAULT, Watch, load_watches
from roundoff.state.processes import inner_model
from roundoff.state.wrappers import unwrapped_name

__all__ = ["INSIDE", "check", "root_of", "sources_of", "watches_of"]

_LOG = logging.getLogger("roundoff")
INSIDE = ("activations", "attention")
"""Kinds that are seen by hooks in the model."""


def check(model: nn.Module, optimizer: Optimizer) -> None:
    """`UsageError` unless the optimizer trains the model."""
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    if not isinstance(optimizer, Optimizer):  # pyright: ignore[reportUnnecessaryIsInstance]
        kind = type(optimizer).__name__
        raise UsageError(f"optimizer is a {kind}; expected a torch.optim.Optimizer")
    mine = {id(p) for p in model.parameters()}
    if not any(id(p) in mine for group in optimizer.param_groups for p in group["params"]):
        raise UsageError(
            "the optimizer holds no parameter of the model; expected the one it trains"
        )


def root_of(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel and torch.compile's wrapper."""
    inner: Any = inner_model(model)
    inner = getattr(inner, "_orig_mod", inner)
    return model if inner is model else root_of(inner)


def watches_of(watch: Sequence[Watch] | str | Path | None, every: int | None) -> list[Watch]:
    """The watches that were asked for; `every` is that of the default ones."""
    if watch is None:
        own = {} if every is None else {"every": every}
        return [w.model_copy(update=own) for w in DEFAULT]
    if every is not None:
        raise UsageError(f"every={every} beside watch; give each Watch an `every` of its own")
    found = load_watches(watch) if isinstance(watch, str | Path) else list(watch)
    if not found:
        raise UsageError("watch is empty; expected at least one Watch, or None for the default")
    return found


def sources_of(
    root: nn.Module, optimizer: Optimizer, watches: list[Watch], hidden: set[str],
    *, given: bool,
) -> list[Source]:  # fmt: skip
    """A source for each watch; by default, what a compiled model hides is left out, and said."""
    found: list[Source] = []
    for watch in watches:
        if watch.of not in INSIDE:
            found.append(Tensors(watch, root, optimizer))
            continue
        modules = named_modules(root)
        inside = [name for name in watch.chosen(modules) if name in hidden]
        if inside and given:
            raise UnsupportedError(
                f"{watch.of} of {inside[0]!r} cannot be watched: it runs inside a torch.compile "
                "graph, and watching would make that another graph; watch gradients, parameters, "
                "updates or moments, or a model that is not compiled"
            )
        if inside:
            _LOG.warning("monitor: %s are left out: the model is compiled", watch.of)
        elif watch.of == "activations":
            found.append(Activations(watch, root, modules))
        else:
            found.append(AttentionCalls(watch, root, modules))
    return found


def named_modules(root: nn.Module) -> dict[str, nn.Module]:
    """The modules by their names without wrappers; the root is called `model`."""
    named: Any = root.named_modules
    return {unwrapped_name(name) or "model": module for name, module in named()}
