"""Files as memory: what is read of them is in the page cache, and takes no memory of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["Mapped"]


class Mapped:
    """A file, mapped into memory: elements of any dtype from any byte on."""

    def __init__(self, path: Path) -> None:
        # Copy on write, since torch wants memory that could be written.
        whole = np.memmap(path, np.uint8, "c") if path.stat().st_size else np.empty(0, np.uint8)
        self.data = whole.view(np.ndarray)
        self._aligned = torch.empty(0, dtype=torch.uint8)

    def flat(self, place: int, dtype: torch.dtype, start: int, stop: int) -> Tensor:
        """Return elements start to stop of those that begin at a byte."""
        size = dtype.itemsize
        if start == stop:
            return torch.empty(0, dtype=dtype)
        raw = torch.as_tensor(self.data[place + start * size : place + stop * size])
        if dtype is torch.bool:  # any byte but 0 is true, also one that torch would not write
            return raw.ne(0)
        if place % size == 0:
            return raw.view(dtype)
        # Into memory that is there already: touching new pages takes longer than copying.
        if self._aligned.numel() < raw.numel():
            self._aligned = torch.empty(raw.numel(), dtype=torch.uint8)
        return self._aligned[: raw.numel()].copy_(raw).view(dtype)
