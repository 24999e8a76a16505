"""`diff`: two sets of weights, tensor by tensor, layer by layer, and as a whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from roundoff.errors import CheckpointError
from roundoff.metrics.wasserstein_parts import has_kernels
from roundoff.metrics.weights import WeightDistance
from roundoff.weights.casts import Cast
from roundoff.weights.checkpoint import Checkpoint
from roundoff.weights.heap import MOST_PASSES, Heap
from roundoff.weights.names import bare_names, group_of, optimizer_kinds
from roundoff.weights.pairs import Pair, Pairing, paired
from roundoff.weights.readers import Source, open_checkpoint
from roundoff.weights.tensors import (
    Reading,
    Tell,
    TensorDiff,
    bytes_of,
    compare_tensors,
    silent,
)

__all__ = ["Diff", "GroupDiff", "compare_checkpoints", "diff"]


@dataclass(frozen=True, slots=True)
class GroupDiff:
    """Several floating-point tensors together: a layer, all weights, a kind of optimizer state.

    `wasserstein_pooled` is W1 of all their values in one heap a side (None where it was not taken).
    `wasserstein_per_tensor` is the mean of the tensors' own W1, weighted by size, in which one
    tensor's loss is never another's gain: it is never the smaller.
    """

    name: str
    tensors: int
    distance: WeightDistance
    wasserstein_pooled: float | None
    wasserstein_per_tensor: float
    update: WeightDistance | None = None


@dataclass(frozen=True)
class Diff:
    """What came of a comparison: `overall`, `groups` and `tensors`, and what was not compared.

    A is golden. `overall` and `groups` are of the model's floating-point tensors, each counted
    once; `cast` is what all of these that differ have in common. `optimizer` is of what an
    optimizer keeps, told by its names (`optimizer_kinds`), a group for each kind of it.
    """

    a: Checkpoint
    b: Checkpoint
    base: Checkpoint | None
    pairing: Pairing
    tensors: Sequence[TensorDiff]
    groups: Sequence[GroupDiff]
    overall: GroupDiff
    cast: Cast | None
    notes: Sequence[str] = field(default_factory=list[str])
    optimizer: Sequence[GroupDiff] = ()

    def worst(self, count: int = 10) -> list[TensorDiff]:
        """Return the tensors of the largest `rel_l2`, those with a NaN first; weights, if any.

        >>> import torch
        >>> a = {"fc.weight": torch.ones(2, 2), "fc.bias": torch.ones(2)}
        >>> [t.pair.name for t in diff(a, a | {"fc.bias": torch.zeros(2)}).worst()]
        ['fc.bias']
        """

        def size(tensor: TensorDiff) -> float:
            found = tensor.distance.rel_l2
            return math.inf if math.isnan(found) else found

        kinds = optimizer_kinds(t.pair.name for t in self.tensors)
        weights = [t for t in self.tensors if t.pair.name not in kinds] or self.tensors
        changed = [t for t in weights if t.distance.differing]
        return sorted(changed, key=size, reverse=True)[:count]

    def to_record(self) -> dict[str, Any]:
        """Return everything as plain JSON data."""
        from roundoff.weights.record import record_of  # noqa: PLC0415 - which imports this

        return record_of(self)


def diff(
    a: Source, b: Source, *, base: Source | None = None, rename: Mapping[str, str] | None = None
) -> Diff:
    """Compare two checkpoints: paths of any format, or mappings of names to tensors.

    `a` is golden. `base` is a checkpoint that both come from: then the two updates are compared
    too. `rename` maps names in `a` to names in `b` (those that end in a dot: prefixes). Prefixes of
    torch.compile, DDP and FSDP are taken off. NaN and infinity stay in: see `WeightDistance` and
    `wasserstein`. Raises `CheckpointError` for what cannot be read, or shares no tensor.

    >>> import torch
    >>> a = {"fc.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    >>> found = diff(a, {"module.fc.weight": torch.tensor([[1.5, 2.0], [3.0, 4.0]])})
    >>> found.overall.distance.max_diff, found.overall.wasserstein_pooled
    (0.5, 0.125)
    """
    sides = open_checkpoint(a), open_checkpoint(b)
    opened = None if base is None else open_checkpoint(base)
    return compare_checkpoints(*sides, base=opened, renames=rename)


def compare_checkpoints(
    a: Checkpoint,
    b: Checkpoint,
    *,
    base: Checkpoint | None = None,
    renames: Mapping[str, str] | None = None,
    most_passes: int = MOST_PASSES,
    tell: Tell = silent,
) -> Diff:
    """Compare two open checkpoints, group by group; `tell` hears of bytes done, and of all."""
    pairing = paired(a, b, renames)
    reading = Reading(a, b, base, {}, tell, sum(bytes_of(pair) for pair in pairing.pairs))
    notes = _base_names(reading, pairing)
    kinds = optimizer_kinds(pair.name for pair in pairing.pairs)
    heap = Heap(_pooled([pair for pair in pairing.pairs if pair.name not in kinds]))
    groups, optimizer, tensors = list[GroupDiff](), list[GroupDiff](), list[TensorDiff]()
    by_group: dict[tuple[bool, str], list[Pair]] = {}
    for pair in pairing.pairs:
        kind = kinds.get(pair.name)
        key = (False, group_of(pair.name)) if kind is None else (True, f"optimizer {kind}")
        by_group.setdefault(key, []).append(pair)
    if not has_kernels():
        notes.append("without Numba this is slower, and sorts hold whole tensors: roundoff[fast]")
    for (is_state, name), pairs in by_group.items():
        found = _compare_group(reading, name, pairs, heap, most_passes)
        tensors += found[0]
        if found[1].tensors:
            (optimizer if is_state else groups).append(found[1])
    pooled = heap.distance(reading, most_passes=most_passes)
    weights = [t for t in tensors if t.pair.name not in kinds]
    overall = _together("all", _counted(weights), pooled)
    if isinstance(pooled, str):
        notes.append(f"the pooled W1 of all is not given: {pooled}")
    if optimizer:
        count = sum(group.tensors for group in optimizer)
        notes.append(
            f"{count} tensors of optimizer state are no part of all, and have their own rows"
        )
    return Diff(
        a, b, base, pairing, tensors, groups, overall, _cast(weights), notes, optimizer
    )  # fmt: skip


def _compare_group(
    reading: Reading, name: str, pairs: list[Pair], whole: Heap, most_passes: int
) -> tuple[list[TensorDiff], GroupDiff]:
    heap = Heap(_pooled(pairs))
    tensors: list[TensorDiff] = []
    for pair in pairs:
        heaps = [h for h in (heap, whole) if pair.name in h.names]
        found, counts = compare_tensors(reading, pair, parts=any(h.way == "parts" for h in heaps))
        tensors.append(found)
        for h in heaps:
            h.add(counts)
    counted = _counted(tensors)
    single = len(counted) == 1
    pooled = counted[0].wasserstein if single else heap.distance(reading, most_passes=most_passes)
    return tensors, _together(name, counted, pooled)


def _base_names(reading: Reading, pairing: Pairing) -> list[str]:
    """Note which tensors the base has; return what is to be said of the others."""
    base = reading.base
    if base is None:
        return []
    names = bare_names(base.path, base.entries)
    fit = {
        pair.name: names[pair.name]
        for pair in pairing.pairs
        if pair.name in names and base.entries[names[pair.name]].shape == pair.a.shape
    }
    if not fit:
        raise CheckpointError(f"the base {base.path} has none of the tensors of {reading.a.path}")
    reading.base_names.update(fit)
    absent = [pair.name for pair in pairing.pairs if pair.name not in fit]
    if not absent:
        return []
    more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
    return [f"the base lacks {absent[0]}{more}, or has another shape there"]


def _pooled(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs of floating-point tensors, each set of numbers once."""
    return [
        p for p in pairs
        if p.a.dtype.is_floating_point and p.b.dtype.is_floating_point and not p.tied
    ]  # fmt: skip


def _counted(tensors: Sequence[TensorDiff]) -> list[TensorDiff]:
    kept = {pair.name for pair in _pooled([t.pair for t in tensors])}
    return [t for t in tensors if t.pair.name in kept]


def _together(name: str, tensors: Sequence[TensorDiff], pooled: float | str) -> GroupDiff:
    distance, update = WeightDistance(), None
    weighted: list[float] = []
    for tensor in tensors:
        distance = distance.merge(tensor.distance)
        if tensor.update is not None:
            update = (update or WeightDistance()).merge(tensor.update)
        if tensor.distance.n:
            weighted.append(tensor.wasserstein * tensor.distance.n)
    per_tensor = math.fsum(weighted) / distance.n if distance.n else math.nan
    given = None if isinstance(pooled, str) else pooled
    return GroupDiff(name, len(tensors), distance, given, per_tensor, update)


def _cast(tensors: Sequence[TensorDiff]) -> Cast | None:
    """The one cast that explains every floating-point tensor that differs, or changed its dtype."""
    asked = [
        t for t in _counted(tensors)
        if t.distance.n and (t.distance.differing or t.pair.a.dtype != t.pair.b.dtype)
    ]  # fmt: skip
    found = {t.cast for t in asked}
    lossy = {cast for cast in found if cast is None or cast.mode not in ("exact", "either")}
    kinds = {(t.cast.side, t.cast.format) for t in asked if t.cast is not None}
    if not asked or None in lossy or len(kinds) != 1 or len(lossy) > 1:
        return None
    either = [cast for cast in found if cast is not None and cast.mode == "either"]
    return next(iter([*lossy, *either, asked[0].cast]))
