"""torch's global settings that change numbers: read, and kept from changing under others' code.

They are part of a cell's environment. A user's module may change them when it is imported or
called; what is measured after it must not notice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["changed", "kept", "put", "read"]

_MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class _Setting:
    get: Callable[[], Any]
    set: Callable[[Any], object]


def _attribute(path: str) -> _Setting | None:
    """The setting at `torch.<path>`; None where this version of torch has none."""
    *steps, last = path.split(".")
    owner: Any = torch
    for step in steps:
        owner = getattr(owner, step, None)
    try:
        getattr(owner, last)
    except AttributeError:
        return None
    return _Setting(lambda: getattr(owner, last), lambda value: setattr(owner, last, value))


def _float32_precision() -> str:
    """The older interface, which refuses to answer once the newer one was used."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return _MIXED


def _flushes_subnormals() -> bool:
    smallest = torch.tensor(2.0**-149, dtype=torch.float32, device="cpu")
    return (smallest * 1.0).item() == 0.0


_CUDA = torch.backends.cuda
_FUNCTIONS: dict[str, _Setting] = {
    "default_dtype": _Setting(lambda: str(torch.get_default_dtype()), lambda name: (
        torch.set_default_dtype(getattr(torch, str(name).removeprefix("torch."))))),
    "default_device": _Setting(lambda: str(torch.get_default_device()), lambda name: (
        torch.set_default_device(None if name == "cpu" else name))),
    "deterministic": _Setting(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    "flush_subnormals": _Setting(_flushes_subnormals, torch.set_flush_denormal),
    "float32_matmul_precision": _Setting(
        _float32_precision, torch.set_float32_matmul_precision),
    "math_sdp_reduction": _Setting(
        _CUDA.fp16_bf16_reduction_math_sdp_allowed, _CUDA.allow_fp16_bf16_reduction_math_sdp),
    "math_sdp": _Setting(_CUDA.math_sdp_enabled, _CUDA.enable_math_sdp),
    "flash_sdp": _Setting(_CUDA.flash_sdp_enabled, _CUDA.enable_flash_sdp),
    "efficient_sdp": _Setting(_CUDA.mem_efficient_sdp_enabled, _CUDA.enable_mem_efficient_sdp),
    "cudnn_sdp": _Setting(_CUDA.cudnn_sdp_enabled, _CUDA.enable_cudnn_sdp),
}  # fmt: skip
_ATTRIBUTES = (
    "backends.fp32_precision",
    "backends.mkldnn.fp32_precision",
    "backends.mkldnn.matmul.fp32_precision",
    "backends.mkldnn.conv.fp32_precision",
    "backends.mkldnn.deterministic",
    "backends.cuda.matmul.fp32_precision",
    "backends.cuda.matmul.allow_fp16_accumulation",
    "backends.cuda.matmul.allow_fp16_reduced_precision_reduction",
    "backends.cuda.matmul.allow_bf16_reduced_precision_reduction",
    "backends.cudnn.fp32_precision",
    "backends.cudnn.conv.fp32_precision",
    "backends.cudnn.enabled",
    "backends.cudnn.benchmark",
    "backends.cudnn.deterministic",
)
# The older interface comes first: setting it sets some of the newer ones, which then follow.
_SETTINGS = _FUNCTIONS | {
    path.removeprefix("backends."): setting
    for path in _ATTRIBUTES
    if (setting := _attribute(path)) is not None
}


def read() -> dict[str, Any]:
    """Every setting as plain data."""
    return {name: setting.get() for name, setting in _SETTINGS.items()}


def changed(before: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are no longer as they were `before`."""
    return {name: now for name, now in read().items() if now != before[name]}


@contextlib.contextmanager
def kept(own: Mapping[str, Any] | None = None) -> Generator[None]:
    """Put `own` settings in force; at the end settings, threads and random state are as before."""
    before, threads, random = read(), torch.get_num_threads(), torch.get_rng_state()
    try:
        put(own or {})
        yield
    finally:
        put(before)
        torch.set_rng_state(random)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def put(values: Mapping[str, Any]) -> None:
    """Put settings in force and leave them so."""
    for name, value in values.items():
        setting = _SETTINGS[name]
        if value != _MIXED and setting.get() != value:
            setting.set(value)
