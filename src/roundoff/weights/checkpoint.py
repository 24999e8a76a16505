"""What a checkpoint is to everything else: named tensors that are read in flat blocks.

A reader checks whatever it is given when it opens it, never executes anything of it, and turns
all that its library raises into one `CheckpointError`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["BLOCK", "Checkpoint", "Entry", "blocks", "dtype_name", "is_beside", "why_not"]

BLOCK = 8 << 20
"""Bytes of a block."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor: its shape, its dtype, and the name whose numbers it shares, if any."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    tied_to: str | None = None

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


@dataclass
class Checkpoint(ABC):
    """Named tensors. `left_out` says of everything else by name why it cannot be compared."""

    path: str
    kind: str
    entries: dict[str, Entry] = field(default_factory=dict[str, Entry])
    left_out: dict[str, str] = field(default_factory=dict[str, str])

    @abstractmethod
    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Return elements start to stop of a tensor in row-major order: flat, on the CPU.

        They are to be used before the next are read, since these may take their place.
        """


def blocks(entry: Entry, other: Entry) -> Iterator[tuple[int, int]]:
    """Yield start and stop of the blocks of two tensors of one size.

    >>> e = Entry((3, 1 << 20), torch.float32)
    >>> list(blocks(e, e))
    [(0, 2097152), (2097152, 3145728)]
    """
    step = BLOCK // max(entry.dtype.itemsize, other.dtype.itemsize)
    for start in range(0, entry.size, step):
        yield start, min(start + step, entry.size)


def why_not(dtype: torch.dtype) -> str | None:
    """Why numbers of a dtype are not compared, or None where they are."""
    if dtype.is_complex:
        return f"{dtype_name(dtype)}: complex numbers have no order"
    if dtype in _REAL:
        return None
    return f"{dtype_name(dtype)}: not numbers that can be compared"


_REAL = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool,
}  # fmt: skip


def dtype_name(dtype: torch.dtype) -> str:
    """Torch's name of a dtype, such as `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def is_beside(file: str) -> bool:
    """Whether a name that a checkpoint gives is that of a file in its own folder.

    >>> is_beside("model-1.safetensors"), is_beside("../secret"), is_beside("..")
    (True, False, False)
    """
    return Path(file).name == file and file not in ("", ".", "..")
