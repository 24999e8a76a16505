"""Tensors in tiles: which runs of a flat block lie in which piece of a sharded tensor."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from roundoff.errors import CheckpointError

__all__ = ["Tile", "check_tiles", "fill"]


@dataclass(frozen=True, slots=True)
class Tile:
    """A box within a tensor: its first index and its size along each axis."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


def check_tiles(path: str, name: str, shape: tuple[int, ...], tiles: list[Tile]) -> None:
    """Raise `CheckpointError` unless the tiles cover the tensor once."""
    inside = all(
        len(t.offsets) == len(t.sizes) == len(shape)
        and all(o >= 0 and n >= 0 and o + n <= s
                for o, n, s in zip(t.offsets, t.sizes, shape, strict=True))
        for t in tiles
    )  # fmt: skip
    full = [t for t in tiles if math.prod(t.sizes)]
    covered = sum(math.prod(t.sizes) for t in full)
    if not inside or covered != math.prod(shape) or _meet(full):
        raise CheckpointError(f"{path}: the pieces of {name!r} do not make up {list(shape)}")


def _meet(tiles: list[Tile]) -> bool:
    """Whether two tiles share an element."""
    if len(tiles) < 2 or not tiles[0].sizes:
        return len(tiles) > 1
    low = np.array([t.offsets for t in tiles])
    high = low + np.array([t.sizes for t in tiles])
    for at in range(len(tiles) - 1):
        rest = slice(at + 1, None)
        if ((low[at] < high[rest]) & (low[rest] < high[at])).all(1).any():
            return True
    return False


def fill(
    out: Tensor, start: int, shape: tuple[int, ...], tile: Tile,
    read: Callable[[int, int], Tensor],
) -> None:  # fmt: skip
    """Write into `out`, the elements of a tensor from `start` on, those that a tile holds.

    `read(first, last)` gives elements of the tile in row-major order. In that order a tile is
    made of runs, as long as possible, that follow one another in the tensor too.
    """
    stop = start + out.numel()
    axis = next((d for d in reversed(range(len(shape))) if tile.sizes[d] != shape[d]), 0)
    run = math.prod(tile.sizes[axis:])
    runs = math.prod(tile.sizes[:axis])
    if not run or not runs:
        return

    def place(j: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where runs begin in the tensor."""
        index: Sequence[NDArray[np.int64]] = np.unravel_index(j, tile.sizes[:axis]) if axis else ()  # pyright: ignore[reportAssignmentType]
        at = np.zeros(j.shape, np.int64)
        for d, along_d in enumerate(index):
            at = at * shape[d] + along_d + tile.offsets[d]
        unit = math.prod(shape[axis + 1 :])
        along = shape[axis] if shape else 1
        return at * along * unit + (tile.offsets[axis] * unit if shape else 0)

    def begins(j: int) -> int:
        return int(place(np.array([j]))[0])

    first = bisect.bisect_right(range(runs), start - run, key=begins)
    last = bisect.bisect_left(range(runs), stop, key=begins)
    if first >= last:
        return
    low = first * run + max(0, start - begins(first))
    high = (last - 1) * run + min(run, stop - begins(last - 1))
    values = read(low, high)
    if last - first == 1:
        at = begins(first) + low - first * run - start
        out[at : at + high - low] = values
        return
    held = torch.arange(low, high)
    starts = torch.as_tensor(place(np.arange(first, last)))
    out[starts[held // run - first] + held % run - start] = values
