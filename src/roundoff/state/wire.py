"""Nested state as JSON and named tensors: what `state_dict()` gives, without a pickle.

JSON has no tuples, no integer keys, no NaN and no tensors; each is written as an object with
one key that begins with `$`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from roundoff.errors import UsageError

__all__ = ["pack", "unpack"]


def pack(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """`value` as JSON; its tensors go to `tensors` under their paths, copied to the CPU.

    A `UsageError` names the path of what is no plain data.
    """
    if isinstance(value, np.ndarray):
        array = cast("np.ndarray[Any, Any]", value)
        return {"$array": [_put(_tensor(array, path), tensors, path), str(array.dtype)]}
    if isinstance(value, Tensor):
        return {"$tensor": _put(value.detach().to("cpu", copy=True), tensors, path)}
    if isinstance(value, np.generic):
        value = cast("Any", value).item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return _pack_mapping(cast("Mapping[Any, Any]", value), tensors, path)
    if isinstance(value, list | tuple):
        items = [pack(v, tensors, f"{path}.{i}") for i, v in enumerate(cast("list[Any]", value))]
        return items if isinstance(value, list) else {"$tuple": items}
    raise UsageError(
        f"{path.lstrip('.')} is a {type(value).__name__}; a snapshot holds tensors, numbers, "
        "strings, lists, tuples and mappings of them"
    )


def _put(x: Tensor, tensors: dict[str, Tensor], path: str) -> str:
    """The name under which `x` is kept; two paths can read alike, as of the keys 1 and "1"."""
    name = path
    while name in tensors:
        name += "'"
    tensors[name] = x.contiguous()
    return name


def _tensor(array: np.ndarray[Any, Any], path: str) -> Tensor:
    if array.dtype.kind not in "biuf":
        raise UsageError(f"{path} is an array of {array.dtype}; expected numbers")
    return torch.from_numpy(array.astype(np.int64 if array.dtype.kind == "u" else array.dtype))  # pyright: ignore[reportUnknownMemberType]


def _pack_mapping(value: Mapping[Any, Any], tensors: dict[str, Tensor], path: str) -> Any:
    packed = {k: pack(v, tensors, f"{path}.{k}".lstrip(".")) for k, v in value.items()}
    if isinstance(value, Counter):
        return {"$counter": [[k, v] for k, v in packed.items()]}
    if all(isinstance(k, str) and not k.startswith("$") for k in value):
        return packed
    return {"$mapping": [[pack(k, {}, path), v] for k, v in packed.items()]}


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The state of which `pack` made `value` and `tensors`; its tensors are copies."""
    if isinstance(value, list):
        return [unpack(v, tensors) for v in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    mapping = cast("dict[str, Any]", value)
    for key, made in _MADE.items():
        if key in mapping:
            return made(mapping[key], tensors)
    return {k: unpack(v, tensors) for k, v in mapping.items()}


def _pairs(pairs: list[Any], tensors: Mapping[str, Tensor]) -> dict[Any, Any]:
    return {unpack(k, tensors): unpack(v, tensors) for k, v in pairs}


_MADE: dict[str, Callable[[Any, Mapping[str, Tensor]], Any]] = {
    "$tensor": lambda name, tensors: tensors[name].clone(),
    "$array": lambda named, tensors: tensors[named[0]].numpy().astype(named[1]),
    "$float": lambda text, _: float(text),
    "$tuple": lambda items, tensors: tuple(unpack(v, tensors) for v in items),
    "$counter": lambda pairs, tensors: Counter(_pairs(pairs, tensors)),
    "$mapping": _pairs,
}
