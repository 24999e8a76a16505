"""Processes of one training: what each saw, on its way to the first of them."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from roundoff.live.sources import Key, Seen
from roundoff.state.processes import distributed, is_first

__all__ = ["Ranks"]


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

    def merged(self, seen: Seen) -> Seen | None:
        """What all saw, on the CPU, in the first process; None in the others.

        A process whose own part cannot be had sends nothing, and raises when all have met.
        """
        states, error = dict[Key, Tensor](), None
        try:
            states = _fetched(seen.states)
        except Exception as problem:
            error = problem
        every: list[Any] = [states]
        if self._distributed is not None:
            every = [None] * self._distributed.get_world_size(self._group)
            self._distributed.all_gather_object(every, states, group=self._group)
        if error is not None:
            raise error
        if not is_first():
            return None
        merged = Seen({}, seen.probes)
        for key, state in (pair for each in every for pair in each.items()):
            known, probe = merged.states.get(key), seen.probes[key.of, key.probe]
            merged.states[key] = state if known is None else probe.merge(known, state)
        return merged


def _fetched(states: dict[Key, Tensor]) -> dict[Key, Tensor]:
    """All states on the CPU, by one transfer a device."""
    found: dict[Key, Tensor] = {}
    for device in dict.fromkeys(state.device for state in states.values()):
        here = {key: state for key, state in states.items() if state.device == device}
        flat = torch.cat([state.reshape(-1) for state in here.values()]).cpu()
        sizes = [state.numel() for state in here.values()]
        parts: tuple[Tensor, ...] = cast(Any, flat).split(sizes)
        for (key, state), part in zip(here.items(), parts, strict=True):
            found[key] = part.view(state.shape)
    return {key: found[key] for key in states}
