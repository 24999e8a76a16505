"""Processes that train one model: whether there are several, and the model inside their wrapper."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["distributed", "inner_model", "is_first"]


def distributed() -> Any:
    """`torch.distributed` where a group of processes has been made; None elsewhere."""
    library: Any = torch.distributed
    return library if library.is_available() and library.is_initialized() else None


def is_first() -> bool:
    """Whether this process is the first of its training, or the only one."""
    group = distributed()
    return group is None or group.get_rank() == 0


def inner_model(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, whose own forward pass talks to other processes."""
    return cast(Any, model).module if isinstance(model, DistributedDataParallel) else model
