"""An unpickler that makes plain data and nothing else, for what torch's formats keep in pickles.

It knows the few names that torch.distributed.checkpoint writes. None of their classes is made:
each is told as a `Told`, and any other name is refused, so that nothing of a file is executed.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import torch

from roundoff.errors import CheckpointError

__all__ = ["PieceTold", "Told", "plain"]


class Told:
    """What a pickle says of an object of a class that it names; read by attribute."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(cast("dict[str, object]", state))
        else:
            self.state = state


class _Metadata(Told):
    pass


class _Tensor(Told):
    pass


class _Bytes(Told):
    pass


@dataclass(frozen=True)
class PieceTold:
    """A tensor that a file of torch.save describes: where its numbers are, and how they lie."""

    dtype: torch.dtype
    storage: str
    held: int  # bytes
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype | None  # None: bytes
    key: str = ""
    count: int = 0


def _rebuilt(storage: _Storage, offset: int, shape: Any, stride: Any, *rest: object) -> PieceTold:
    named = [r for r in rest if isinstance(r, torch.dtype)]
    dtype = named[0] if named else storage.dtype
    if dtype is None:
        raise pickle.UnpicklingError("a tensor without a dtype")
    held = storage.count * (storage.dtype.itemsize if storage.dtype else 1)
    (offset,) = _sizes((offset,))
    return PieceTold(dtype, storage.key, held, offset, _sizes(shape), _sizes(stride))


def _sizes(value: Any = ()) -> tuple[int, ...]:
    sizes = tuple(value)
    if not all(isinstance(n, int) and n >= 0 for n in sizes):
        raise pickle.UnpicklingError("sizes that are no whole numbers")
    return sizes


def _parameter(data: object, *_: object) -> object:
    return data


_DCP = "torch.distributed.checkpoint"
_KNOWN: dict[tuple[str, str], Callable[..., object]] = {
    (f"{_DCP}.metadata", "Metadata"): _Metadata,
    (f"{_DCP}.metadata", "TensorStorageMetadata"): _Tensor,
    (f"{_DCP}.metadata", "BytesStorageMetadata"): _Bytes,
    (f"{_DCP}.metadata", "ChunkStorageMetadata"): Told,
    (f"{_DCP}.metadata", "MetadataIndex"): Told,
    (f"{_DCP}.metadata", "TensorProperties"): Told,
    (f"{_DCP}.metadata", "StorageMeta"): Told,
    (f"{_DCP}.metadata", "_MEM_FORMAT_ENCODING"): Told,
    (f"{_DCP}.filesystem", "_StorageInfo"): Told,
    (f"{_DCP}.filesystem", "_StoragePrefix"): Told,
    ("torch.serialization", "_get_layout"): Told,
    ("pathlib", "PosixPath"): Told,
    ("pathlib", "WindowsPath"): Told,
    ("pathlib._local", "PosixPath"): Told,
    ("collections", "OrderedDict"): dict,
    ("torch", "Size"): _sizes,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuilt,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}
_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool, "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if known := _KNOWN.get((module_name, global_name)):
            return known
        if (module_name, global_name) == ("torch.storage", "UntypedStorage"):
            return _Storage(None)
        if module_name == "torch" and global_name in _STORAGES:
            return _Storage(_STORAGES[global_name])
        dtype = getattr(torch, global_name, None) if module_name == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        raise CheckpointError(f"it asks for {f'{module_name}.{global_name}'[:80]!r}")

    def persistent_load(self, pid: Any, /) -> _Storage:
        match pid:
            case ("storage", _Storage() as kind, str() as key, str(), int() as count):
                return _Storage(kind.dtype, key, count)
            case _:
                raise pickle.UnpicklingError("a storage that is told in no known way")


def plain(file: BinaryIO, name: object) -> Any:
    """Return the data of a pickle; `CheckpointError` where it is damaged or names anything else.

    >>> import io
    >>> plain(io.BytesIO(pickle.dumps(print)), "x")
    Traceback (most recent call last):
    ...
    roundoff.errors.CheckpointError: x is not to be trusted: it asks for 'builtins.print'
    """
    try:
        return _Unpickler(file).load()
    except CheckpointError as error:
        raise CheckpointError(f"{name} is not to be trusted: {error}") from None
    except RecursionError:
        raise CheckpointError(f"{name} is damaged: it is nested too deeply") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise CheckpointError(
            f"{name} is damaged: {str(error)[:120] or type(error).__name__}"
        ) from None
