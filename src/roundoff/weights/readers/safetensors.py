"""Safetensors files, read here: a header of JSON, then the numbers.

The library's own reader reads a whole tensor for a slice of it; here a slice is a slice of the
mapped file.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from roundoff.errors import CheckpointError
from roundoff.weights.checkpoint import Checkpoint, Entry, why_not
from roundoff.weights.readers.mapped import Mapped

__all__ = ["Safetensors", "open_safetensors"]

MOST_HEADER = 100_000_000
"""Bytes of a header; the format's own limit."""
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16,
    "I8": torch.int8, "U8": torch.uint8, "U16": torch.uint16, "U32": torch.uint32,
    "U64": torch.uint64, "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip


@dataclass
class Safetensors(Checkpoint):
    """A file, mapped; `places` are the first bytes of the tensors."""

    file: Mapped | None = None
    places: dict[str, int] = field(default_factory=dict[str, int])

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """As `Checkpoint.read`: a view of the mapped file."""
        assert self.file is not None
        return self.file.flat(self.places[name], self.entries[name].dtype, start, stop)


def open_safetensors(path: Path) -> Checkpoint:
    """Open a file; raises `CheckpointError` unless the header fits the file in every respect."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little") if size >= 8 else -1
        if not 2 <= length <= min(size - 8, MOST_HEADER):
            raise CheckpointError(f"{path} is no safetensors file, or its header is cut short")
        header = _header(path, file.read(length))
    found = Safetensors(str(path), "safetensors")
    spans: list[tuple[int, int, str]] = []
    for name, about in header.items():
        if name == "__metadata__":
            continue
        start, stop = _span(path, name, about, size - 8 - length)
        spans.append((start, stop, name))
        _take(found, name, about, 8 + length + start, stop - start)
    for (_, end, name), (start, _, other) in itertools.pairwise(sorted(spans)):
        if start < end:
            raise CheckpointError(f"{path}: {name!r} and {other!r} overlap; not read")
    if found.entries:
        found.file = Mapped(path)
    return found


def _header(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name occurs twice")
        return dict(pairs)

    try:
        header: object = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its header is damaged: {error}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its header is damaged: no object")
    return cast("dict[str, Any]", header)


def _span(path: Path, name: str, about: Any, size: int) -> tuple[int, int]:
    """The bytes of a tensor, within the file."""
    match about:
        case {"dtype": str(), "shape": [*shape], "data_offsets": [int(start), int(stop)]} if all(
            isinstance(n, int) and n >= 0 for n in shape
        ):
            pass
        case _:
            raise CheckpointError(f"{path}: what its header says of {name!r} is damaged")
    if not 0 <= start <= stop <= size:
        raise CheckpointError(
            f"{path}: {name!r} should end at byte {stop} of {size}; it is cut short or damaged"
        )
    return start, stop


def _take(found: Safetensors, name: str, about: dict[str, Any], place: int, held: int) -> None:
    dtype = DTYPES.get(about["dtype"])
    shape = tuple(cast("list[int]", about["shape"]))
    if dtype is None:
        found.left_out[name] = f"{about['dtype'][:20]}: not numbers that can be compared"
        return
    if math.prod(shape) * dtype.itemsize != held:
        raise CheckpointError(
            f"{found.path}: {name!r} has {held} bytes, but {list(shape)} {about['dtype']} needs "
            f"{math.prod(shape) * dtype.itemsize}"
        )
    if why := why_not(dtype):
        found.left_out[name] = why
        return
    found.entries[name], found.places[name] = Entry(shape, dtype), place
