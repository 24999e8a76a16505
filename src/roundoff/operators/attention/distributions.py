"""Inputs of attention: drawn in float64 from the seed, or read from a file.

    B batch, H heads, Hk key heads, N queries, M keys, D, Dv head dims
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from roundoff.errors import UsageError
from roundoff.operators.attention.parameters import lengths
from roundoff.operators.protocol import Value

__all__ = ["content", "draw"]

Inputs = dict[str, Tensor]


def draw(parameters: Mapping[str, Value], seed: int) -> Inputs:
    """q [B,H,N,D], k [B,Hk,M,D], v [B,Hk,M,Dv] and, if the mask has one, its tensor, in float64."""
    kind, _, rest = str(parameters["inputs"]).partition(":")
    if kind == "file":
        return _read(Path(rest), parameters)
    generator = torch.Generator().manual_seed(seed)
    number = float(rest) if rest else None
    inputs = _normal(parameters, generator)
    inputs = _SHAPED[kind](inputs, generator, number)
    mask = _mask(parameters, generator)
    return inputs if mask is None else inputs | {"mask": mask}


def content(parameters: Mapping[str, Value]) -> dict[str, str]:
    """The digest of the file that the inputs come from, if they do."""
    kind, _, rest = str(parameters["inputs"]).partition(":")
    if kind != "file":
        return {}
    try:
        with Path(rest).open("rb") as file:
            return {"inputs": hashlib.file_digest(file, "sha256").hexdigest()}
    except OSError as error:
        raise UsageError(f"cannot read the inputs {rest!r}: {error.strerror}") from None


def _randn(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def _normal(parameters: Mapping[str, Value], generator: torch.Generator) -> Inputs:
    shapes = _shapes(parameters)
    return {name: _randn(shape, generator) for name, shape in shapes.items()}


def _scaled(inputs: Inputs, generator: torch.Generator, scale: float | None) -> Inputs:
    return {name: x * (scale or 1.0) for name, x in inputs.items()}


def _outliers(inputs: Inputs, generator: torch.Generator, number: float | None) -> Inputs:
    def mixed(x: Tensor) -> Tensor:
        chosen = torch.rand(x.shape, dtype=torch.float64, generator=generator) < 0.001
        return x + 10.0 * _randn(tuple(x.shape), generator) * chosen

    return {name: mixed(x) for name, x in inputs.items()}


def _peaked(inputs: Inputs, generator: torch.Generator, height: float | None) -> Inputs:
    """Give each query a part along one key, so that its logit is about `height` (20)."""
    q, k = inputs["q"], inputs["k"]
    keys = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    chosen = torch.randint(0, k.shape[2], q.shape[:3], generator=generator)
    nearest = torch.gather(keys, 2, chosen[..., None].expand_as(q))
    along = (height or 20.0) * q.shape[-1] ** 0.5 / nearest.square().sum(-1, keepdim=True)
    return inputs | {"q": q + along * nearest}


def _tied(inputs: Inputs, generator: torch.Generator, number: float | None) -> Inputs:
    k = inputs["k"]
    half = (k.shape[2] + 1) // 2
    return inputs | {"k": torch.cat([k[:, :, :half], k[:, :, :half]], 2)[:, :, : k.shape[2]]}


def _one_signed(inputs: Inputs, generator: torch.Generator, number: float | None) -> Inputs:
    return inputs | {"v": inputs["v"].abs()}


def _offset(inputs: Inputs, generator: torch.Generator, height: float | None) -> Inputs:
    def ramp(x: Tensor) -> Tensor:
        return torch.linspace(0.0, height or 4.0, x.shape[2], dtype=x.dtype)[:, None]

    return {name: x + ramp(x) for name, x in inputs.items()}


_SHAPED = {
    "normal": _scaled,
    "outliers": _outliers,
    "peaked": _peaked,
    "tied": _tied,
    "one-signed": _one_signed,
    "offset": _offset,
}


def _mask(parameters: Mapping[str, Value], generator: torch.Generator) -> Tensor | None:
    """Boolean: three keys of four visible; additive: N(0, 1), with one of eight at -inf."""
    heads, _, n, m, _, _ = lengths(parameters)
    shape = (1, heads, n, m)
    if parameters["mask"] == "boolean":
        return torch.rand(shape, generator=generator) < 0.75
    if parameters["mask"] == "additive":
        hidden = torch.rand(shape, generator=generator) < 0.125
        return _randn(shape, generator).masked_fill(hidden, float("-inf"))
    return None


def _read(path: Path, parameters: Mapping[str, Value]) -> Inputs:
    from safetensors import SafetensorError  # noqa: PLC0415 - only where a file is read
    from safetensors.torch import load_file  # noqa: PLC0415

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot read the inputs {str(path)!r}: {error}") from None
    missing = {"q", "k", "v"} - tensors.keys()
    if missing:
        raise UsageError(f"{path} holds no {', '.join(sorted(missing))}; expected tensors q, k, v")
    wanted = _shapes(parameters)
    for name in "qkv":
        if tuple(tensors[name].shape) != wanted[name]:
            raise UsageError(
                f"{path}: {name} has shape {tuple(tensors[name].shape)}, but the cell's "
                f"parameters say {wanted[name]} [batch, heads, length, head_dim]"
            )
    return {n: t if t.dtype == torch.bool else t.double() for n, t in tensors.items()}


def _shapes(parameters: Mapping[str, Value]) -> dict[str, tuple[int, ...]]:
    heads, kv_heads, n, m, d, dv = lengths(parameters)
    batch = parameters["batch"]
    assert isinstance(batch, int)
    return {"q": (batch, heads, n, d), "k": (batch, kv_heads, m, d), "v": (batch, kv_heads, m, dv)}
