"""From what a user asks of a monitor to its sources; all that is refused is refused here."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from io import IOBase
from pathlib import Path
from typing import Any, cast, get_args

from torch import nn
from torch.optim import Optimizer

from roundoff.errors import UnsupportedError, UsageError
from roundoff.live.activations import Activations
from roundoff.live.attention import AttentionCalls
from roundoff.live.compiled import compiled_names
from roundoff.live.left_out import outermost, some
from roundoff.live.sinks import Sink, sink_at
from roundoff.live.sources import Source, Tensors, named_modules
from roundoff.live.watch import DEFAULT, Of, Watch, load_watches
from roundoff.state.processes import inner_model, is_first

__all__ = [
    "INSIDE", "To", "check", "first_of", "places_of", "root_of", "sinks_of", "sources_of",
    "watches_of",
]  # fmt: skip

_LOG = logging.getLogger("roundoff")
INSIDE = ("activations", "attention")
"""Kinds that are seen by hooks in the model."""

To = Sink | str | Path | Iterable[Sink | str | Path] | None
"""Where readings go."""


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


def watches_of(
    watch: Watch | Sequence[Watch | Of] | str | Path | None, every: int | None
) -> list[Watch]:
    """The watches that were asked for; `every` is that of the default ones, and of bare kinds."""
    own: dict[str, Any] = {} if every is None else {"every": every}
    if watch is None:
        return [Watch(**{**w.model_dump(exclude_unset=True), **own}) for w in DEFAULT]
    if isinstance(watch, Watch) or watch in get_args(Of):
        watch = [cast("Watch | Of", watch)]
    found: list[Any] = load_watches(watch) if isinstance(watch, str | Path) else [*watch]
    if not found:
        raise UsageError("watch is empty; expected at least one Watch, or None for the default")
    if alien := [w for w in found if not isinstance(w, Watch | str)]:
        raise UsageError(f"watch has {alien[0]!r}; expected a Watch, or a kind such as 'gradients'")
    if every is not None and any(isinstance(w, Watch) for w in found):
        raise UsageError(f"every={every} beside watch; give each Watch an `every` of its own")
    return [w if isinstance(w, Watch) else Watch(of=w, **own) for w in found]


def first_of(step: int) -> int:
    """The number of the first step; `UsageError` unless it is one."""
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"first_step is {step!r}; expected an integer of at least 0")
    return step


def places_of(to: To) -> list[Sink | str | Path]:
    """Sinks, and paths of such, one by one; `UsageError` for what is neither."""
    if to is None:
        return []
    one = isinstance(to, str | Path | Sink) or not hasattr(to, "__iter__")
    places: list[Any] = [to] if one else [*cast("Iterable[Any]", to)]
    for place in places:
        if not isinstance(place, str | Path | Sink) or isinstance(place, IOBase | type):
            raise UsageError(
                f"to has {place!r}; expected a path, or an object with write(step, readings, "
                "findings) and close()"
            )
    return places


def sinks_of(to: To) -> list[Sink]:
    """The sinks; those of paths in the first process alone."""
    writes = is_first()
    places = [p for p in places_of(to) if writes or not isinstance(p, str | Path)]
    return [sink_at(p) if isinstance(p, str | Path) else p for p in places]


def sources_of(
    model: nn.Module, optimizer: Optimizer, watches: list[Watch], *, given: bool
) -> list[Source]:
    """A source for each watch; by default, a kind that a compiled model hides is left out."""
    root, found = root_of(model), list[Source]()
    hidden = compiled_names(root, model)
    for watch in watches:
        if watch.of not in INSIDE:
            found.append(Tensors(watch, root, optimizer))
            continue
        chosen = watch.chosen(named_modules(root))
        inside = [name for name in chosen if name in hidden]
        if inside and given:
            raise UnsupportedError(
                f"{watch.of} of {inside[0]!r} cannot be watched: it runs inside a torch.compile "
                "graph, and watching would make that another graph; watch gradients, parameters, "
                "updates or moments, or a model that is not compiled"
            )
        # The door of attention is one for the process: graphs made without it are made anew.
        if inside and (inside == chosen or watch.of == "attention"):
            names = some(outermost(inside))
            _LOG.warning("monitor: %s: left out (compiled: %s)", watch.of, names)
        else:
            source = Activations if watch.of == "activations" else AttentionCalls
            found.append(source(watch, root))
    return found
