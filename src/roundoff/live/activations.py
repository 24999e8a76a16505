"""Activations: what modules return in a sampled step, reduced as it passes by."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from roundoff.intercept.hooks import Hook
from roundoff.live.compiled import in_sight
from roundoff.live.left_out import LeftOut
from roundoff.live.sources import Safely, Seen, in_backward
from roundoff.live.watch import Watch
from roundoff.metrics.probes import Probe, observe, tensor_probe

__all__ = ["Activations"]


class Activations:
    """The outputs of modules whose names fit; of several tensors, all as one."""

    def __init__(self, watch: Watch, root: nn.Module) -> None:
        self.watch, self._root = watch, root
        self.safely: Safely = contextlib.nullcontext
        self._probes: list[Probe[Tensor]] = [
            tensor_probe(name, watch.format) for name in watch.measured
        ]
        self._left_out = LeftOut(watch.of)
        self._states: dict[str, list[Tensor | None]] = {}
        self._hooks: list[Any] = []

    def begin(self, step: int) -> None:  # noqa: ARG002 - attention draws by it
        """Put the hooks in, at the modules that there are now."""
        self._states = {}
        for name, module in in_sight(self._root, self.watch, self._left_out).items():
            if isinstance(module, torch.jit.ScriptModule):
                self._left_out.put(name, "scripted")
            else:
                self._hooks.append(module.register_forward_hook(Hook(self._hook(name))))

    def before_update(self) -> None:
        """Nothing to do."""

    def end(self, seen: Seen) -> None:
        """Hand over the states, in the order in which the modules first returned."""
        for probe in self._probes:
            seen.put("activations", "", probe, None)
        for name, states in self._states.items():
            for probe, state in zip(self._probes, states, strict=True):
                seen.put("activations", name, probe, state)
        read = any(state is not None for states in self._states.values() for state in states)
        self.drop()
        self._left_out.say(read=read)

    def drop(self) -> None:
        """Take the hooks out."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._states = [], {}

    def _hook(self, name: str) -> Any:
        def look(_module: nn.Module, _args: Any, output: Any) -> None:
            if torch.compiler.is_compiling() or in_backward() or not self._root.training:
                return
            with self.safely(), torch.no_grad():
                self._look(name, output)

        return look

    def _look(self, name: str, output: Any) -> None:
        states = self._states.setdefault(name, [None] * len(self._probes))
        for tensor in _floats(output):
            try:
                states = observe(self._probes, states, tensor)
            except Exception as error:
                self._left_out.failed(name, error, tensor)
        self._states[name] = states


def _floats(output: Any) -> Iterator[Tensor]:
    """The floating tensors of what a module returned."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in cast("Mapping[Any, Any]", output).values():
            yield from _floats(value)
    elif isinstance(output, Sequence) and not isinstance(output, str):
        for value in cast("Sequence[Any]", output):
            yield from _floats(value)
