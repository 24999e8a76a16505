"""Inputs of any operator: drawn on the CPU in float64, read from files, rounded once."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Generator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roundoff.errors import UsageError
from roundoff.formats import Format, round_to
from roundoff.operators.arithmetic import carrier
from roundoff.registry import load

__all__ = [
    "MOST_SEED", "check_seed", "check_tensors", "file_digest", "randn", "read_tensors",
    "sampled_rows", "split", "stored",
]  # fmt: skip


MOST_SEED = 2**62
"""Torch's generators hold more, and so do columns of 64 bits after some thousand seeds on."""


def check_seed(seed: int) -> None:
    """Raise `UsageError` for a seed that generators, or a column of a table, cannot hold."""
    if not 0 <= seed <= MOST_SEED:
        raise UsageError(f"seed {seed}: expected a whole number from 0 to {MOST_SEED}")


def split(inputs: str, default: float = 1.0) -> tuple[str, float]:
    """A distribution's kind, and its number."""
    kind, _, rest = inputs.partition(":")
    return kind, float(rest) if rest else default


def randn(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """N(0, 1) in float64, whatever torch's default dtype and device are."""
    return torch.randn(shape, dtype=torch.float64, device="cpu", generator=generator)


def sampled_rows(rows: int | None, of: int, seed: int) -> Tensor | None:
    """`rows` of `of` row numbers in ascending order, drawn by the seed (None: all of them)."""
    if rows is None or rows >= of:
        return None
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(of, device="cpu", generator=generator)[:rows].sort().values


def stored(x: Tensor, format: Format) -> Tensor:
    """`x` rounded once to `format`, in float32 (float64 where the format needs it).

    Finite values that are too large become the largest number; infinities stay, since in
    a mask they hide keys. A boolean tensor comes back as it is.
    """
    if x.dtype == torch.bool:
        return x
    rounded = round_to(x, format, overflow="saturate") if format.mantissa_bits < 52 else x
    return torch.where(x.isinf(), x, rounded).to(carrier(format))


def file_digest(path: str) -> str:
    """The SHA-256 of a file of inputs."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"cannot read the inputs {path!r}: {error.strerror}") from None


def check_tensors(path: Path, required: Collection[str]) -> None:
    """Raise `UsageError` unless `path` is a .safetensors file that holds `required`."""
    safe_open: Any = load("safetensors:safe_open")
    with _reading(path), safe_open(path, framework="pt") as file:
        missing = set(required) - set(file.keys())
    if missing:
        raise UsageError(
            f"{path} holds no {', '.join(sorted(missing))}; expected tensors {', '.join(required)}"
        )


def read_tensors(path: Path, required: Collection[str]) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, of which `required` must be there."""
    check_tensors(path, required)
    load_file: Any = load("safetensors.torch:load_file")
    with _reading(path):
        return load_file(path)


@contextlib.contextmanager
def _reading(path: Path) -> Generator[None]:
    from safetensors import SafetensorError  # noqa: PLC0415 - only where a file is read

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot read the inputs {str(path)!r}: {error}") from None
