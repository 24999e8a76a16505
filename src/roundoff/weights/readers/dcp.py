"""Folders of torch.distributed.checkpoint: a pickle that says which piece of which tensor is where.

Read in one process, without a process group, piece by piece from the mapped files: the library's
own loading wants whole tensors, and casts them to the dtype that it finds at the other side.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from roundoff.errors import CheckpointError
from roundoff.weights.checkpoint import Checkpoint, Entry, is_beside, why_not
from roundoff.weights.pickles import PieceTold, Told, plain
from roundoff.weights.readers.mapped import Mapped
from roundoff.weights.readers.strides import in_order, last_place, places
from roundoff.weights.readers.tiles import Tile, check_tiles, fill

__all__ = ["Dcp", "open_dcp"]

MOST_METADATA = 1 << 28
MOST_PICKLE = 1 << 20
"""Bytes of the pickles: of the folder, and of a piece."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a tensor: its tile, the file, and the bytes within it that torch.save wrote."""

    tile: Tile
    file: str
    place: int
    length: int


@dataclass
class Dcp(Checkpoint):
    """A folder; its files are mapped as they are needed."""

    pieces: dict[str, list[Piece]] = field(default_factory=dict[str, list[Piece]])
    files: dict[str, Mapped] = field(default_factory=dict[str, Mapped])
    told: dict[tuple[str, int], tuple[PieceTold, int]] = field(
        default_factory=dict[tuple[str, int], tuple[PieceTold, int]]
    )

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """As `Checkpoint.read`: put together from the pieces that hold part of the block."""
        entry, pieces = self.entries[name], self.pieces[name]
        if len(pieces) == 1:
            return self._read_piece(name, pieces[0], start, stop)
        out = torch.empty(stop - start, dtype=entry.dtype)
        for piece in pieces:
            fill(
                out, start, entry.shape, piece.tile,
                lambda first, last, piece=piece: self._read_piece(name, piece, first, last),
            )  # fmt: skip
        return out

    def _read_piece(self, name: str, piece: Piece, start: int, stop: int) -> Tensor:
        told, place = self._look(name, piece)
        file = self.files[piece.file]
        if in_order(told.shape, told.stride):
            first = place + told.offset * told.dtype.itemsize
            return file.flat(first, told.dtype, start, stop)
        size = told.dtype.itemsize
        raw = torch.as_tensor(file.data[place : place + told.held // size * size])
        chosen = told.offset + places(told.shape, told.stride, start, stop)
        return raw.reshape(-1, size)[chosen].flatten().view(told.dtype)

    def _look(self, name: str, piece: Piece) -> tuple[PieceTold, int]:
        """What a piece says of itself, and the byte of the file at which its storage begins."""
        key = piece.file, piece.place
        if key not in self.told:
            told, place = _opened(Path(self.path), piece, self.files[piece.file].data)
            _agree(self.path, name, told, self.entries[name], piece)
            self.told[key] = told, place
        return self.told[key]


def _agree(path: str, name: str, told: PieceTold, entry: Entry, piece: Piece) -> None:
    if (told.dtype, told.shape) != (entry.dtype, piece.tile.sizes):
        raise CheckpointError(
            f"{piece.file!r} of {path} holds {told.dtype} {list(told.shape)} for {name!r}, where "
            f".metadata says {entry.dtype} {list(piece.tile.sizes)}"
        )
    last = told.offset + last_place(told.shape, told.stride)
    if told.shape and math.prod(told.shape) and (last + 1) * told.dtype.itemsize > told.held:
        raise CheckpointError(f"{piece.file!r} of {path} is damaged: {name!r} exceeds its storage")


def open_dcp(path: Path) -> Checkpoint:
    """Open a folder; raises `CheckpointError` where it is damaged, lacks a file or names code.

    Pieces are looked into when they are read.
    """
    place = path / ".metadata"
    if place.stat().st_size > MOST_METADATA:
        raise CheckpointError(f"{place} has more than {MOST_METADATA} bytes; that is no metadata")
    with place.open("rb") as file:
        metadata = plain(file, place)
    found = Dcp(str(path), "torch.distributed.checkpoint")
    try:
        tensors: dict[str, Told] = dict(metadata.state_dict_metadata)
        stored = _stored(metadata.storage_data)
        for name, about in tensors.items():
            _take(found, str(name), about, stored)
    except (AttributeError, TypeError, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(f"{place} is damaged: {str(error)[:120]}") from None
    for file in {piece.file for pieces in found.pieces.values() for piece in pieces}:
        if not (path / file).is_file():
            raise CheckpointError(f"{path} lacks {file!r}, which its .metadata names")
        found.files[file] = Mapped(path / file)
    return found


def _stored(data: Any) -> dict[tuple[str, tuple[int, ...]], Told]:
    """Where each piece is, by name and offsets of its tensor."""
    pairs = cast("dict[Told, Told]", data).items()
    return {
        (str(key.__dict__["fqn"]), tuple(key.__dict__.get("offset") or ())): info
        for key, info in pairs
    }


def _take(
    found: Dcp, name: str, about: Told, stored: dict[tuple[str, tuple[int, ...]], Told]
) -> None:
    if "chunks" not in about.__dict__:
        found.left_out[name] = "bytes: no tensor"
        return
    dtype = about.__dict__["properties"].state[0]
    shape: tuple[int, ...] = tuple(about.__dict__["size"])
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"what it says of {name!r} is no tensor")
    if why := why_not(dtype):
        found.left_out[name] = why
        return
    pieces: list[Piece] = []
    for chunk in about.__dict__["chunks"]:
        tile = Tile(tuple(chunk.offsets), tuple(chunk.sizes))
        info = stored[name, tile.offsets]
        if info.__dict__.get("transform_descriptors"):
            raise CheckpointError(f"{found.path}: {name!r} is compressed; not read")
        file = str(info.__dict__["relative_path"])
        if not is_beside(file):
            raise CheckpointError(f"{found.path} names a file {file!r} that is not in it")
        pieces.append(Piece(tile, file, int(info.__dict__["offset"]), int(info.__dict__["length"])))
    check_tiles(found.path, name, shape, [piece.tile for piece in pieces])
    found.entries[name], found.pieces[name] = Entry(shape, dtype), pieces


class _Window(io.RawIOBase):
    """Some bytes of a mapped file as a file of their own."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        super().__init__()
        self._data, self._at = memoryview(cast("Any", data)), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        start = (0, self._at, len(self._data))[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        some = self._data[self._at : self._at + len(buffer)]
        buffer[: len(some)] = some
        self._at += len(some)
        return len(some)


def _opened(folder: Path, piece: Piece, data: NDArray[np.uint8]) -> tuple[PieceTold, int]:
    """What torch.save wrote of a piece, and where in the file its storage begins."""
    where = f"{folder / piece.file} at byte {piece.place}"
    if not 0 <= piece.place <= piece.place + piece.length <= data.size:
        raise CheckpointError(f"{where}: a piece should end beyond the file; it is cut short")
    window = data[piece.place : piece.place + piece.length]
    try:
        with zipfile.ZipFile(io.BufferedReader(_Window(window))) as archive:
            records = {r.filename.partition("/")[2]: r for r in archive.infolist()}
            _check(where, records)
            told = plain(io.BytesIO(archive.read(records["data.pkl"])), where)
            if not isinstance(told, PieceTold):
                raise CheckpointError(f"{where}: no tensor")
            if "byteorder" in records and archive.read(records["byteorder"]) != b"little":
                raise CheckpointError(f"{where}: its numbers are big-endian; not read")
        record = records[f"data/{told.storage}"]
        head = record.header_offset
        # The lengths of its name and of its extra field end the local header of a record.
        start = head + 30 + sum(struct.unpack("<HH", window[head + 26 : head + 30].tobytes()))
    except CheckpointError:
        raise
    except Exception as error:  # a damaged zip raises nearly anything
        raise CheckpointError(f"{where}: the piece is damaged: {str(error)[:120]}") from None
    if record.file_size < told.held or start + told.held > window.size:
        raise CheckpointError(f"{where}: the piece is damaged: its storage is cut short")
    return told, piece.place + start


def _check(where: str, records: dict[str, zipfile.ZipInfo]) -> None:
    for record in records.values():
        if record.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"{where}: its record {record.filename!r} is compressed")
    small = [r for name, r in records.items() if name in ("data.pkl", "byteorder")]
    if any(record.file_size > MOST_PICKLE for record in small):
        raise CheckpointError(f"{where}: its pickle is too large")
