"""Inputs of attention: drawn in float64 from the seed, or read from a file.

B batch, H heads, Hk key heads, N queries, M keys, D, Dv head dims
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from roundoff.errors import UsageError
from roundoff.operators.attention.parameters import DEFAULT_NUMBERS, lengths
from roundoff.operators.inputs import check_tensors, file_digest, randn, read_tensors
from roundoff.operators.protocol import Value

__all__ = ["content", "draw"]

Inputs = dict[str, Tensor]

TIED_HEIGHT = 22.0
"""How far tied keys stand above the others, in the exponent of e: far enough that all others
together weigh less than an ulp of bf16, and still decide which way a tie is rounded."""


def draw(parameters: Mapping[str, Value], seed: int) -> Inputs:
    """q [B,H,N,D], k [B,Hk,M,D], v [B,Hk,M,Dv] and, if the mask has one, its tensor, in float64.

    Where gradients are asked for also dout [B,H,N,Dv] ~ N(0, 1), drawn last.
    """
    kind, _, rest = str(parameters["inputs"]).partition(":")
    if kind == "file":
        return _read(Path(rest), parameters)
    generator = torch.Generator().manual_seed(seed)
    number = float(rest) if rest else DEFAULT_NUMBERS.get(kind, 1.0)
    inputs = {name: randn(shape, generator) for name, shape in _shapes(parameters).items()}
    inputs = _SHAPED[kind](inputs, generator, number)
    mask = _mask(parameters, generator)
    if mask is not None:
        inputs = inputs | {"mask": mask}
    if parameters["gradients"] == "yes":
        inputs = inputs | {"dout": randn(_output_shape(parameters), generator)}
    return inputs


def content(parameters: Mapping[str, Value]) -> dict[str, str]:
    """The digest of the file that the inputs come from, if they do; it holds all that is needed."""
    kind, _, rest = str(parameters["inputs"]).partition(":")
    if kind != "file":
        return {}
    found = {"inputs": file_digest(rest)}
    check_tensors(Path(rest), _names(parameters))
    return found


# Each takes the normal inputs, the generator and the distribution's number.
Shaper = Callable[[Inputs, torch.Generator, float], Inputs]


def _scaled(inputs: Inputs, _: torch.Generator, scale: float) -> Inputs:
    return {name: x * scale for name, x in inputs.items()}


def _outliers(inputs: Inputs, generator: torch.Generator, _: float) -> Inputs:
    def mixed(x: Tensor) -> Tensor:
        chosen = _uniform(tuple(x.shape), generator) < 0.001
        return x + 10.0 * randn(tuple(x.shape), generator) * chosen

    return {name: mixed(x) for name, x in inputs.items()}


def _peaked(inputs: Inputs, generator: torch.Generator, height: float) -> Inputs:
    """Give each query a part along one key, so that its logit is about `height`."""
    q, k = inputs["q"], inputs["k"]
    keys = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    chosen = torch.randint(0, k.shape[2], q.shape[:3], device="cpu", generator=generator)
    nearest = torch.gather(keys, 2, chosen[..., None].expand_as(q))
    along = height * q.shape[-1] ** 0.5 / nearest.square().sum(-1, keepdim=True)
    return inputs | {"q": q + along * nearest}


def _tied(inputs: Inputs, _: torch.Generator, __: float) -> Inputs:
    k = inputs["k"]
    half = (k.shape[2] + 1) // 2
    return inputs | {"k": torch.cat([k[:, :, :half], k[:, :, :half]], 2)[:, :, : k.shape[2]]}


def _tied_peak(inputs: Inputs, generator: torch.Generator, times: float) -> Inputs:
    """Every key comes `times` times in a row, and each query is close to one of them."""
    k, count = inputs["k"], max(1, int(times))
    first = torch.arange(k.shape[2], device="cpu") // count * count
    return _peaked(inputs | {"k": k[:, :, first]}, generator, TIED_HEIGHT)


def _tied_one_signed(inputs: Inputs, generator: torch.Generator, times: float) -> Inputs:
    return _tied_peak(inputs | {"v": -inputs["v"].abs()}, generator, times)


def _one_signed(inputs: Inputs, _: torch.Generator, __: float) -> Inputs:
    return inputs | {"v": inputs["v"].abs()}


def _offset(inputs: Inputs, _: torch.Generator, height: float) -> Inputs:
    def ramp(x: Tensor) -> Tensor:
        steps = torch.linspace(0.0, height, x.shape[2], dtype=x.dtype, device="cpu")
        return steps[:, None]

    return {name: x + ramp(x) for name, x in inputs.items()}


_SHAPED: Mapping[str, Shaper] = {
    "normal": _scaled,
    "outliers": _outliers,
    "peaked": _peaked,
    "tied": _tied,
    "one-signed": _one_signed,
    "tied-peak": _tied_peak,
    "tied-one-signed": _tied_one_signed,
    "offset": _offset,
}


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, device="cpu", generator=generator)


def _mask(parameters: Mapping[str, Value], generator: torch.Generator) -> Tensor | None:
    """Boolean: three keys of four visible; additive: N(0, 1), with one of eight at -inf."""
    heads, _, n, m, _, _ = lengths(parameters)
    shape = (1, heads, n, m)
    if parameters["mask"] == "boolean":
        return _uniform(shape, generator) < 0.75
    if parameters["mask"] == "additive":
        hidden = _uniform(shape, generator) < 0.125
        return randn(shape, generator).masked_fill(hidden, float("-inf"))
    return None


def _read(path: Path, parameters: Mapping[str, Value]) -> Inputs:
    """q, k, v and, where they are needed, mask and dout; other tensors are left alone."""
    kind, names = parameters["mask"], _names(parameters)
    wanted = _shapes(parameters)
    if "dout" in names:
        wanted |= {"dout": _output_shape(parameters)}
    tensors = read_tensors(path, names)
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise UsageError(
                f"{path}: {name} has shape {tuple(tensors[name].shape)}, but the cell's "
                f"parameters say {shape} [batch, heads, length, head_dim]"
            )
    if "mask" in names:
        _check_mask(path, tensors["mask"], str(kind), wanted)
    return {n: t if t.dtype == torch.bool else t.double() for n in names for t in (tensors[n],)}


def _names(parameters: Mapping[str, Value]) -> list[str]:
    """The tensors that a file must hold."""
    names = ["q", "k", "v"]
    names += ["dout"] if parameters["gradients"] == "yes" else []
    return names + (["mask"] if parameters["mask"] in ("boolean", "additive") else [])


def _check_mask(path: Path, mask: Tensor, kind: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    batch, heads, n, _ = shapes["q"]
    m = shapes["k"][2]
    if (mask.dtype == torch.bool) != (kind == "boolean"):
        raise UsageError(f"{path}: mask is {mask.dtype}, which is not what mask {kind!r} says")
    fits = mask.dim() == 4 and all(
        size in (1, whole) for size, whole in zip(mask.shape[:2], (batch, heads), strict=True)
    )
    if not fits or tuple(mask.shape[2:]) != (n, m):
        raise UsageError(
            f"{path}: mask has shape {tuple(mask.shape)}; expected "
            f"[1 or {batch}, 1 or {heads}, {n}, {m}] [batch, heads, q_len, kv_len]"
        )


def _output_shape(parameters: Mapping[str, Value]) -> tuple[int, ...]:
    shapes = _shapes(parameters)
    return (*shapes["q"][:3], shapes["v"][3])


def _shapes(parameters: Mapping[str, Value]) -> dict[str, tuple[int, ...]]:
    heads, kv_heads, n, m, d, dv = lengths(parameters)
    batch = parameters["batch"]
    assert isinstance(batch, int)
    return {"q": (batch, heads, n, d), "k": (batch, kv_heads, m, d), "v": (batch, kv_heads, m, dv)}
