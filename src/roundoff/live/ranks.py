"""Processes of one training: what each saw, on its way to the first of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from roundoff.live.sources import Key
from roundoff.metrics.probes import Probe
from roundoff.records import Reading
from roundoff.state.processes import distributed, is_first

__all__ = ["Ranks", "States", "fetched", "readings_of"]

States = dict[Key, Tensor]


class Ranks:
    """Where the states of all processes meet; every process must sample the same steps.

    A group of its own over gloo, so that states may meet on the CPU whatever the training uses.
    Every process of the training makes it, at the same place.
    """

    def __init__(self) -> None:
        library = distributed()
        self._distributed = library if library and library.get_world_size() > 1 else None
        self._group = None
        if self._distributed is not None:
            self._group = self._distributed.new_group(backend="gloo")

    def gathered(self, states: States) -> list[States] | None:
        """What each process saw, in the first of them; None in the others. All must come by."""
        if self._distributed is None:
            return [states]
        every: list[Any] = [None] * self._distributed.get_world_size(self._group)
        self._distributed.all_gather_object(every, states, group=self._group)
        return every if is_first() else None


def readings_of(
    of: str, step: int, every: Sequence[States], probes: Mapping[tuple[str, str], Probe[Any]]
) -> list[Reading]:
    """The numbers of a kind, of all processes: one reading for each thing, and each head of it."""
    merged: States = {}
    for key, state in (pair for each in every for pair in each.items()):
        if key.of == of and (probe := probes.get((of, key.probe))) is not None:
            known = merged.get(key)
            merged[key] = state if known is None else probe.merge(known, state)
    values: dict[tuple[str, bool, int | None], dict[str, float]] = {}
    for key, state in merged.items():
        for name, tensor in probes[of, key.probe].values(state).items():
            numbers: Any = tensor
            heads: Any = enumerate(numbers.tolist()) if tensor.ndim else [(None, numbers.item())]
            for head, value in heads:
                values.setdefault((key.name, key.pooled, head), {})[name] = float(value)
    return [
        Reading(step, of, n, found, head, pooled) for (n, pooled, head), found in values.items()
    ]


def fetched(states: States) -> States:
    """All states on the CPU, by one transfer a device."""
    found: States = {}
    for device in dict.fromkeys(state.device for state in states.values()):
        here = {key: state for key, state in states.items() if state.device == device}
        flat = torch.cat([state.reshape(-1) for state in here.values()]).cpu()
        sizes = [state.numel() for state in here.values()]
        parts: tuple[Tensor, ...] = cast(Any, flat).split(sizes)
        for (key, state), part in zip(here.items(), parts, strict=True):
            found[key] = part.view(state.shape)
    return {key: found[key] for key in states}
