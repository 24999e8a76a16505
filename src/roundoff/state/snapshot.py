"""Snapshot: all that a training step depends on, in memory or as one safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from roundoff.errors import RunError, UsageError
from roundoff.state.random_states import RandomStates
from roundoff.state.wire import pack, unpack
from roundoff.state.wrappers import unwrapped_name
from roundoff.store.disk import disk_errors, replacing

__all__ = ["Snapshot"]

VERSION = 1


@dataclass(frozen=True)
class Snapshot:
    """The state before step `step`: weights, buffers, optimizer, scheduler, scaler, random states.

    `tensors` are copies on the CPU, bit for bit (NaN and -0 too); `rest` is the rest of the state
    as JSON, in which they are named. Restored into objects built alike, training goes on
    as if it had not stopped. A branch is a snapshot restored into another task.

    >>> model = torch.nn.Linear(2, 2)
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> snapshot = Snapshot.capture(0, model, optimizer)
    >>> before = model.weight.detach().clone()
    >>> model(torch.ones(1, 2)).sum().backward()
    >>> optimizer.step()
    >>> snapshot.restore(model, optimizer)
    >>> torch.equal(model.weight, before), len(optimizer.state)
    (True, 0)
    """

    step: int
    tensors: Mapping[str, Tensor]
    rest: Any

    @classmethod
    def capture(
        cls,
        step: int,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler | None = None,
        scaler: Any = None,
    ) -> Snapshot:
        """Copy the state between two steps; `scaler` is a `torch.amp.GradScaler`.

        Buffers count that `state_dict` leaves out. Gradients do not: capture after `step()`.
        """
        tensors: dict[str, Tensor] = {}
        state = {
            "model": _values(model),
            "optimizer": optimizer.state_dict(),
            "scheduler": None if scheduler is None else scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "random": vars(RandomStates.here()),
        }
        return cls(step, tensors, pack(state, tensors))

    def restore(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler | None = None,
        scaler: Any = None,
        *,
        random_states: bool = True,
    ) -> None:
        """Put the state into `model` and the others, in place.

        What the snapshot has and is not given, or the other way about, is a `UsageError`, and so
        are tensors of other names or shapes. The random states are left alone without
        `random_states`.
        """
        state = unpack(self.rest, self.tensors)
        for name, given in (("scheduler", scheduler), ("scaler", scaler)):
            if (state[name] is None) != (given is None):
                has, wants = ("no", "a") if state[name] is None else ("a", "no")
                raise UsageError(f"the snapshot has {has} {name}, and {wants} {name} was given")
        _put_values(model, state["model"])
        _put_optimizer(optimizer, state["optimizer"])
        if scheduler is not None:
            scheduler.load_state_dict(state["scheduler"])
        if scaler is not None:
            scaler.load_state_dict(state["scaler"])
        if random_states:
            RandomStates(**state["random"]).put_back()

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, whole or not at all. A `RunError` says why it cannot."""
        rest = json.dumps(self.rest, allow_nan=False)
        about = {
            "roundoff": f"snapshot {VERSION}",
            "step": str(self.step),
            "state": rest,
            "sha256": _digest(str(self.step), rest, self.tensors),
        }
        library: Any = safetensors.torch
        try:
            with replacing(Path(path)) as temporary:
                library.save_file(dict(self.tensors), temporary, metadata=about)
        except SafetensorError as error:
            raise RunError(f"cannot write {path}: {error}") from error

    @classmethod
    def load(cls, path: Path | str) -> Snapshot:
        """Read a file of `save`; a `RunError` if it is none, or is damaged."""
        path = Path(path)
        about, tensors = _read(path)
        if about.get("roundoff") != f"snapshot {VERSION}":
            found = about.get("roundoff", "another safetensors file")
            raise RunError(f"{path} is {found}; expected a snapshot of version {VERSION}")
        step, rest = about.get("step", ""), about.get("state", "")
        if about.get("sha256") != _digest(step, rest, tensors):
            raise RunError(f"{path} is damaged: its content is not what was written; use another")
        return cls(int(step), tensors, json.loads(rest))


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    opening: Any = safe_open
    try:
        with disk_errors("read", path), opening(path, framework="pt") as file:
            names: list[str] = list(file.keys())
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise RunError(f"{path} is damaged, or no safetensors file: {error}") from error


def _digest(step: str, rest: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(f"{VERSION} {step} {rest}".encode())
    for name in sorted(tensors):
        x = tensors[name].contiguous()
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        content: Any = x.reshape(-1).view(torch.uint8).numpy()
        digest.update(content)
    return digest.hexdigest()


def _values(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; a wrapped model's names are those of the model."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {unwrapped_name(name): x for name, x in named}


@torch.no_grad()
def _put_values(model: nn.Module, saved: dict[str, Tensor]) -> None:
    own = _values(model)
    shapes = [{n: tuple(x.shape) for n, x in values.items()} for values in (own, saved)]
    if shapes[0] != shapes[1]:
        first = min(dict(shapes[0].items() ^ shapes[1].items()))
        raise UsageError(
            f"the snapshot is of another model: {first!r} is {shapes[1].get(first, 'absent')} in "
            f"the snapshot and {shapes[0].get(first, 'absent')} in {type(model).__name__}"
        )
    for name, x in own.items():
        x.copy_(saved[name])


def _put_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    try:
        optimizer.load_state_dict(saved)
    except ValueError as error:
        raise UsageError(f"the snapshot is of another optimizer: {error}") from error
    # load_state_dict gives the state of a parameter that parameter's dtype, which may be narrower.
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, state in saved["state"].items():
        own = optimizer.state[parameters[index]]
        for name, x in state.items():
            if isinstance(x, Tensor) and own[name].dtype != x.dtype:
                own[name] = x.to(own[name].device)
