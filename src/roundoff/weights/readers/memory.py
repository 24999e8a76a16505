"""Tensors that are in memory, or mapped into it from a file of torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from roundoff.errors import CheckpointError
from roundoff.weights.checkpoint import Checkpoint, Entry, why_not
from roundoff.weights.readers.strides import last_place, places

__all__ = ["InMemory"]

MOST_NODES = 1_000_000
MOST_DEEP = 64
MOST_EXPANDED = 1 << 24
"""Elements of a tensor that may have more of them than its storage has."""


@dataclass
class InMemory(Checkpoint):
    """Named tensors of this process."""

    tensors: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    @classmethod
    def of(cls, path: str, kind: str, tree: object) -> InMemory:
        """Take all tensors out of nested dicts, lists and tuples; names are joined with dots.

        What is no tensor is left out by name. Raises `CheckpointError` for a tree that contains
        itself, is too large, or names two tensors alike.
        """
        found = cls(path, kind)
        seen: dict[tuple[Any, ...], str] = {}
        for name, leaf in _leaves(path, tree):
            if name in found.entries or name in found.left_out:
                raise CheckpointError(f"{path}: two things are named {name!r}")
            if why := _unfit(path, name, leaf):
                found.left_out[name] = why
                continue
            tensor = cast("Tensor", leaf).detach()
            key = _identity(tensor)
            tied = seen.setdefault(key, name) if tensor.numel() else name
            entry = Entry(tuple(tensor.shape), tensor.dtype, None if tied == name else tied)
            found.entries[name], found.tensors[name] = entry, tensor
        return found

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """As `Checkpoint.read`; a view where the tensor is contiguous."""
        tensor = self.tensors[name]
        if tensor.is_contiguous():
            return tensor.reshape(-1)[start:stop].cpu()
        # The whole, made contiguous, might not fit: the elements are looked up one by one.
        form = tensor.shape, tensor.stride()
        whole = tensor.as_strided((1 + last_place(*form),), (1,), tensor.storage_offset())
        return whole[places(*form, start, stop).to(tensor.device)].cpu()


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """What two tensors share that are one tensor under two names."""
    place = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
    return (*place, tensor.shape, tensor.stride(), tensor.dtype)


def _unfit(path: str, name: str, leaf: object) -> str | None:
    """Why a leaf is not compared; None where it is."""
    if not isinstance(leaf, Tensor):
        return f"{type(leaf).__name__}: no tensor"
    if leaf.layout is not torch.strided or leaf.is_quantized:
        layout = str(leaf.layout).removeprefix("torch.")
        return f"{'quantised' if leaf.is_quantized else layout}: not a plain tensor"
    if leaf.device.type == "meta":
        return "meta: has no numbers"
    if why := why_not(leaf.dtype):
        return why
    held = leaf.untyped_storage().nbytes() // leaf.dtype.itemsize
    if leaf.numel() > max(held, MOST_EXPANDED):
        raise CheckpointError(
            f"{path}: {name!r} has {leaf.numel()} elements in a storage of {held}; not read"
        )
    return None


def _leaves(path: str, tree: object) -> Iterator[tuple[str, object]]:
    """Everything that is no container, with the names on the way to it."""
    if not isinstance(tree, Mapping):
        tree = {"": tree} if isinstance(tree, Tensor) else tree
    count = 0
    stack: list[tuple[str, object, int]] = [("", tree, 0)]
    while stack:
        name, node, depth = stack.pop()
        count += 1
        if count > MOST_NODES or depth > MOST_DEEP:
            limit = f"{MOST_NODES} entries" if count > MOST_NODES else f"{MOST_DEEP} levels"
            raise CheckpointError(f"{path} holds more than {limit}, or holds itself; not read")
        if isinstance(node, Mapping):
            items = [(str(k), v) for k, v in cast("Mapping[object, object]", node).items()]
        elif isinstance(node, list | tuple) and not isinstance(node, torch.Size):
            items = [(str(i), v) for i, v in enumerate(cast("Sequence[object]", node))]
        else:
            yield name, node
            continue
        stack += [(f"{name}.{k}" if name else k, v, depth + 1) for k, v in reversed(items)]
