"""What wrappers of modules put into the names of weights, and the names without it."""

from __future__ import annotations

__all__ = ["DDP", "unwrapped_name"]

WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts that torch.compile, FSDP and activation checkpointing add, wherever they stand."""

DDP = "module"
"""What DistributedDataParallel adds. Modules of users have this name too: context decides."""


def unwrapped_name(name: str) -> str:
    """The name without the parts of wrappers; one that is nothing else stays as it is.

    >>> unwrapped_name("_orig_mod.layers.0._checkpoint_wrapped_module.weight")
    'layers.0.weight'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPERS) or name
