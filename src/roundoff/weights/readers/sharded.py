"""A checkpoint in several files, with an index of JSON that says which tensor lies in which."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from torch import Tensor

from roundoff.errors import CheckpointError
from roundoff.weights.checkpoint import Checkpoint, is_beside

__all__ = ["Sharded", "open_index"]

MOST_INDEX = 100_000_000


@dataclass
class Sharded(Checkpoint):
    """Several files as one checkpoint."""

    homes: dict[str, Checkpoint] = field(default_factory=dict[str, Checkpoint])

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """As `Checkpoint.read`, from the file that holds the tensor."""
        return self.homes[name].read(name, start, stop)


def open_index(path: Path, opened: Callable[[Path], Checkpoint]) -> Checkpoint:
    """Open all files that an index names; `CheckpointError` where one, or a tensor, is missing.

    A name of a file that leads out of the folder is refused.
    """
    homes = _weight_map(path)
    files = sorted(set(homes.values()))
    for file in files:
        if file.endswith(".json"):
            raise CheckpointError(f"{path} names {file!r}, an index, as a file of tensors")
        if not is_beside(file):
            raise CheckpointError(f"{path} names a file {file!r} that is not beside it")
    if absent := [file for file in files if not (path.parent / file).is_file()]:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise CheckpointError(f"{path.parent} lacks {absent[0]!r}{more}, which {path.name} names")
    shards = {file: opened(path.parent / file) for file in files}
    kinds = {shard.kind for shard in shards.values()}
    found = Sharded(str(path.parent), f"{'/'.join(sorted(kinds))}, {len(files)} files")
    for name, file in homes.items():
        shard = shards[file]
        if name in shard.left_out:
            found.left_out[name] = shard.left_out[name]
        elif name in shard.entries:
            found.entries[name], found.homes[name] = shard.entries[name], shard
        else:
            raise CheckpointError(f"{file!r} of {path.parent} lacks {name!r} of the index")
    for shard in shards.values():
        for name in shard.entries.keys() - homes.keys():
            found.left_out[name] = "stands in a file, but not in the index"
    return found


def _weight_map(path: Path) -> dict[str, str]:
    if path.stat().st_size > MOST_INDEX:
        raise CheckpointError(f"{path} has more than {MOST_INDEX} bytes; that is no index")
    try:
        document: object = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    match document:
        case {"weight_map": dict() as found}:  # pyright: ignore[reportUnknownVariableType]
            homes = cast("dict[str, object]", found)
        case _:
            raise CheckpointError(f"{path} has no weight_map; expected names and their files")
    if not homes or not all(isinstance(file, str) for file in homes.values()):
        raise CheckpointError(f"{path}: its weight_map is empty, or not of names and files")
    return cast("dict[str, str]", homes)
