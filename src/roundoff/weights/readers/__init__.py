"""Readers of checkpoints, one file a format, and `open_checkpoint`, which finds the right one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from roundoff.errors import CheckpointError
from roundoff.weights.checkpoint import Checkpoint
from roundoff.weights.readers.dcp import open_dcp
from roundoff.weights.readers.memory import InMemory
from roundoff.weights.readers.safetensors import open_safetensors
from roundoff.weights.readers.sharded import open_index
from roundoff.weights.readers.torch_file import open_torch

__all__ = ["Source", "open_checkpoint"]

Source = str | Path | Mapping[str, Tensor]

TORCH = (".pt", ".pth", ".bin", ".ckpt")
# What a folder of Hugging Face libraries holds, in the order in which they look for it.
INDEXES = (".safetensors.index.json", ".bin.index.json")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
STEMS = (
    "model", "pytorch_model", "diffusion_pytorch_model", "adapter_model", "flax_model",
)  # fmt: skip


def open_checkpoint(source: Source) -> Checkpoint:
    """Open a file, a folder or a mapping of tensors by its form; nothing of it is executed.

    Raises `CheckpointError` for what is damaged, not to be trusted, or none of these.
    """
    if isinstance(source, Mapping):
        return InMemory.of("memory", "memory", source)
    path = Path(source)
    try:
        return _open_folder(path) if path.is_dir() else _open_file(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None


def _open_file(path: Path) -> Checkpoint:
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    if not path.is_file():
        raise CheckpointError(f"{path} is neither a file nor a folder")
    if path.name.endswith(".index.json"):
        return open_index(path, open_checkpoint)
    if path.suffix == ".safetensors":
        return open_safetensors(path)
    if path.suffix in TORCH:
        return open_torch(path)
    raise CheckpointError(
        f"{path} is no checkpoint by its name; expected .safetensors, {', '.join(TORCH)}, "
        ".index.json, or a folder of Hugging Face or of torch.distributed.checkpoint"
    )


def _open_folder(path: Path) -> Checkpoint:
    if (path / ".metadata").exists():
        return open_dcp(path)
    held = sorted(p for p in path.iterdir() if p.is_file())
    for ending in INDEXES:
        if found := [p for p in held if p.name.endswith(ending)]:
            return open_index(_only(found, path), open_checkpoint)
    for ending in WEIGHTS:
        found = [p for p in held if p.suffix == ending]
        if known := [p for p in found if p.stem in STEMS]:
            return open_checkpoint(known[0])
        if found:
            return open_checkpoint(_only(found, path))
    raise CheckpointError(
        f"{path} holds no checkpoint; expected .metadata (torch.distributed.checkpoint), "
        "*.index.json, *.safetensors, *.bin or *.pt"
    )


def _only(found: list[Path], folder: Path) -> Path:
    if len(found) > 1:
        names = ", ".join(p.name for p in found[:4])
        raise CheckpointError(f"{folder} holds several checkpoints ({names}); name the file")
    return found[0]
