"""What stands beside what in two checkpoints, and what has no partner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from roundoff.errors import CheckpointError
from roundoff.weights.checkpoint import Checkpoint, Entry
from roundoff.weights.names import bare_names, renamed

__all__ = ["Pair", "Pairing", "paired"]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two tensors of one shape: the name that both have, and the names in the files."""

    name: str
    name_a: str
    name_b: str
    a: Entry
    b: Entry
    tied: bool = False
    """Whether both sides share the numbers of another pair, which counts them already."""


@dataclass(frozen=True)
class Pairing:
    """All pairs, in A's order, and what is not compared, by name."""

    pairs: list[Pair] = field(default_factory=list[Pair])
    only_a: list[str] = field(default_factory=list[str])
    only_b: list[str] = field(default_factory=list[str])
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(
        default_factory=dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    )
    tied: dict[str, str] = field(default_factory=dict[str, str])
    """Tensors that one side alone holds since the other ties them to the tensor named."""


def paired(a: Checkpoint, b: Checkpoint, renames: Mapping[str, str] | None = None) -> Pairing:
    """Return the pairing of two checkpoints; `CheckpointError` where they share no tensor."""
    names_a = renamed(bare_names(a.path, a.entries), renames or {})
    names_b = bare_names(b.path, b.entries)
    found = Pairing()
    for name, origin in names_a.items():
        if name not in names_b:
            _alone(found, found.only_a, name, _tied(a, origin, names_a), names_b)
            continue
        first, second = a.entries[origin], b.entries[names_b[name]]
        if first.shape != second.shape:
            found.reshaped[name] = first.shape, second.shape
            continue
        ties = _tied(a, origin, names_a), _tied(b, names_b[name], names_b)
        tied = ties[0] is not None and ties[0] == ties[1]
        found.pairs.append(Pair(name, origin, names_b[name], first, second, tied))
    for name, origin in names_b.items():
        if name not in names_a:
            _alone(found, found.only_b, name, _tied(b, origin, names_b), names_a)
    if not found.pairs:
        raise CheckpointError(
            f"{a.path} and {b.path} share no tensor of one name and shape "
            f"({_some(names_a)} and {_some(names_b)}); give --map for renamed ones"
        )
    return found


def _tied(checkpoint: Checkpoint, origin: str, names: Mapping[str, str]) -> str | None:
    """The name of the tensor that one is tied to."""
    target = checkpoint.entries[origin].tied_to
    return next((name for name, old in names.items() if old == target), None) if target else None


def _alone(
    found: Pairing, missing: list[str], name: str, tied: str | None, others: Mapping[str, str]
) -> None:
    if tied is not None and tied in others:
        found.tied[name] = tied
    else:
        missing.append(name)


def _some(names: Mapping[str, str]) -> str:
    shown = ", ".join(list(names)[:2])
    return f"{shown[:60]}, ..." if names else "none"
