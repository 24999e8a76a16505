"""Sources: where the tensors of a sampled step come from, and the states that they leave.

A source lives for the monitor's life and is awake for one step at a time: `begin`, maybe
`before_update`, and `end` with what was seen, or `drop`. Nothing of it is in the model between.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from roundoff.errors import UnsupportedError
from roundoff.live.left_out import LeftOut
from roundoff.live.watch import Watch
from roundoff.metrics.probes import Probe, observe, tensor_probe
from roundoff.state.processes import is_first
from roundoff.state.wrappers import unwrapped_name

__all__ = [
    "Key", "Safely", "Seen", "Source", "Tensors", "in_backward", "named_modules", "named_weights",
]  # fmt: skip


Safely = Callable[[], contextlib.AbstractContextManager[None]]
"""A block whose errors end the source, and not the training."""


class Key(NamedTuple):
    """Which state it is: of which kind, of what name, by which probe; pooled of all that fit."""

    of: str
    name: str
    probe: str
    pooled: bool = False


@dataclass
class Seen:
    """The states of one sampled step, in the order in which things ran.

    `probes` has all that may have made a state, by kind and name.
    """

    states: dict[Key, Tensor] = field(default_factory=dict[Key, Tensor])
    probes: dict[tuple[str, str], Probe[Any]] = field(
        default_factory=dict[tuple[str, str], Probe[Any]]
    )

    def put(
        self, of: str, name: str, probe: Probe[Any], state: Tensor | None, *, pooled: bool = False
    ) -> None:
        """Take in a state, unless another watch has seen the same."""
        self.probes[of, probe.name] = probe
        if state is not None:
            self.states.setdefault(Key(of, name, probe.name, pooled), state)


class Source(Protocol):
    """What is watched of a kind; what its hooks do, they do `safely`."""

    watch: Watch
    safely: Safely

    def begin(self, step: int) -> None:
        """A sampled step begins."""
        ...

    def before_update(self) -> None:
        """The optimizer is about to step."""
        ...

    def end(self, seen: Seen) -> None:
        """The optimizer has stepped: hand over what was seen, and be gone."""
        ...

    def drop(self) -> None:
        """The step will not be: forget what was seen, and be gone."""
        ...


def named_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by the names that they have without wrappers.

    `UnsupportedError` for FSDP's flat parameters, in which those of a model cannot be told apart.
    """
    found: dict[str, nn.Parameter] = {}
    for name, weight in model.named_parameters():
        if type(weight).__name__ == "FlatParameter":
            raise UnsupportedError(
                f"{name} is a flat parameter of FSDP; expected fully_shard (FSDP2), or "
                "use_orig_params=True"
            )
        found[unwrapped_name(name)] = weight
    return found


def named_modules(root: nn.Module) -> dict[str, nn.Module]:
    """The modules by their names without wrappers; the root is called `model`."""
    named: Any = root.named_modules
    return {unwrapped_name(name) or "model": module for name, module in named()}


class Tensors:
    """Parameters, gradients, updates or moments: all read behind the optimizer's step."""

    def __init__(self, watch: Watch, model: nn.Module, optimizer: Optimizer) -> None:
        self.watch, self._model, self._optimizer = watch, model, optimizer
        self.safely: Safely = contextlib.nullcontext
        watch.chosen(named_weights(model))
        self._weights: dict[str, nn.Parameter] = {}
        self._probes = [tensor_probe(name, watch.format) for name in watch.measured]
        self._before: dict[str, Tensor] = {}
        self._left_out = LeftOut(watch.of)
        self._first = is_first()

    def begin(self, step: int) -> None:
        """Nothing to do before the step."""

    def before_update(self) -> None:
        """See which weights there are now, and keep them where what they move by is asked for."""
        named = named_weights(self._model)
        self._weights = {name: named[name] for name in named if self.watch.fits(name)}
        if self.watch.of == "updates":
            self._before = {n: _local(w).detach().clone() for n, w in self._weights.items()}

    def end(self, seen: Seen) -> None:
        """Read all of them, each and pooled."""
        of, pooled, names = self.watch.of, dict[str, list[Tensor | None]](), set[str]()
        nothing: list[Tensor | None] = [probe.init() for probe in self._probes]
        for probe in self._probes:
            seen.put(of, "", probe, None)
        for weight_name, weight in self._weights.items():
            for what, tensor in self._tensors(weight_name, weight):
                name = weight_name + what
                try:
                    states = observe(self._probes, nothing, _local(tensor))
                except Exception as error:
                    self._left_out.failed(name, error, tensor)
                    continue
                names.add(name)
                for probe, state in zip(self._probes, states, strict=True):
                    seen.put(of, name, probe, state)
                pooled[what] = self._joined(pooled.get(what, nothing), states)
        for what, states in pooled.items():
            if (name := self.watch.names + what) not in names:  # a pattern, and not one's own name
                for probe, state in zip(self._probes, states, strict=True):
                    seen.put(of, name, probe, state, pooled=True)
        self._before = {}
        self._left_out.say(read=bool(names))

    def _joined(self, a: list[Tensor | None], b: list[Tensor | None]) -> list[Tensor | None]:
        pairs = zip(self._probes, a, b, strict=True)
        return [y if x is None else x if y is None else p.merge(x, y) for p, x, y in pairs]

    def drop(self) -> None:
        """Forget the weights of before."""
        self._before = {}

    def _tensors(self, name: str, weight: nn.Parameter) -> Iterable[tuple[str, Tensor]]:
        """The tensors of one weight; of moments, what each is called beside the weight's name."""
        if not self._speaks(weight):
            return
        match self.watch.of:
            case "parameters":
                yield "", weight
            case "gradients" if weight.grad is not None:
                yield "", weight.grad
            case "updates" if name in self._before:
                yield "", _local(weight).detach() - self._before[name]
            case "moments":
                state: Mapping[str, Any] = self._optimizer.state.get(weight, {})
                for key, value in state.items():
                    if isinstance(value, Tensor) and value.shape == weight.shape:
                        yield f":{key}", value
            case _:
                return

    def _speaks(self, weight: nn.Parameter) -> bool:
        """Of processes that hold the same numbers one speaks for all."""
        whole: Any = weight
        if not _sharded(weight):
            return self._first
        pairs = zip(whole.device_mesh.get_coordinate(), whole.placements, strict=True)
        return all(place == 0 for place, how in pairs if how.is_replicate())


def _local(tensor: Tensor) -> Tensor:
    """What this process holds of it."""
    whole: Any = tensor
    return whole.to_local() if _sharded(tensor) else tensor


def _sharded(tensor: Tensor) -> bool:
    return type(tensor).__name__ == "DTensor" or type(tensor.data).__name__ == "DTensor"


def in_backward() -> bool:
    """Whether a backward pass is under way, in which checkpoints run modules again."""
    c: Any = torch._C  # pyright: ignore[reportPrivateUsage]
    return c._current_graph_task_id() != -1
