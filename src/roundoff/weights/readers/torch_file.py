"""Files of `torch.save`: state dicts, nested ones, and what training loops put around them.

Loaded with `weights_only=True`, which makes tensors and plain containers and calls nothing else,
and mapped into memory, so that only what is read takes space.
"""

from __future__ import annotations

import errno
import zipfile
from pathlib import Path

import torch

from roundoff.errors import CheckpointError
from roundoff.weights.checkpoint import Checkpoint
from roundoff.weights.readers.memory import InMemory

__all__ = ["open_torch"]

MOST_PICKLE = 1 << 28
"""Bytes of the pickle in a file, which holds names and shapes alone."""


_NO_CHECKPOINT = "is no checkpoint of torch.save, or is cut short or damaged"


def open_torch(path: Path) -> Checkpoint:
    """Open a file of `torch.save`; raises `CheckpointError` where it is damaged or would call code.

    A file in torch's format from before 1.6 cannot be mapped: it is held in memory as a whole.
    """
    try:
        mapped = zipfile.is_zipfile(path)
        if mapped:
            _check(path)
        tree: object = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except CheckpointError:
        raise
    except OSError as error:
        if path.is_file() and error.errno == errno.EINVAL:  # what torch maps ends too early
            raise CheckpointError(f"{path} cannot be read: it {_NO_CHECKPOINT}") from None
        raise
    except Exception as error:  # torch raises what its unpickler, zip reader or allocator does
        raise CheckpointError(f"{path} cannot be read: {_reason(error)}") from None
    return InMemory.of(str(path), "torch", tree)


def _check(path: Path) -> None:
    """Refuse what torch never writes: compressed records, a pickle of hundreds of megabytes."""
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            if record.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"{path}: its record {record.filename!r} is compressed")
            if record.filename.endswith(".pkl") and record.file_size > MOST_PICKLE:
                raise CheckpointError(f"{path}: its pickle has {record.file_size} bytes; not read")


def _reason(error: Exception) -> str:
    """What went wrong, without torch's advice to trust the file."""
    text = " ".join(str(error).split())
    if "Weights only load failed" in text or "Unsupported" in text:
        _, found, rest = text.partition("WeightsUnpickler error: ")
        detail = rest.partition(" Check the documentation")[0] if found else text
        detail = detail.partition(" Please ")[0].partition(" This file can")[0]
        return f"it asks for more than tensors and plain values ({detail[:160].rstrip(' .,')})"
    return f"it {_NO_CHECKPOINT} ({': '.join(filter(None, (type(error).__name__, text[:200])))})"
