"""Models that train in several processes: what each holds, and one error of all."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from roundoff.errors import UnsupportedError, UsageError
from roundoff.metrics.direct import DirectError

__all__ = ["of_all_processes", "undistributed"]


def undistributed(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, whose own forward pass talks to other processes.

    `UnsupportedError` for weights of which each process holds a part.
    """
    inner = cast(Any, model).module if isinstance(model, DistributedDataParallel) else model
    for name, weight in inner.named_parameters():
        if type(weight.data).__name__ == "DTensor" or type(weight).__name__ == "FlatParameter":
            raise UnsupportedError(
                f"{name} is sharded over processes ({type(weight.data).__name__}); "
                "shadow sees whole parameters only: use DistributedDataParallel"
            )
    return inner


def of_all_processes(error: DirectError, model: nn.Module) -> DirectError:
    """The sum of all processes' errors, without changing any; each batch counts as a sample.

    `UsageError` where they did not sample the same calls.
    """
    distributed: Any = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return error
    group = getattr(model, "process_group", None)
    device = next(iter(model.parameters())).device
    clocks = torch.tensor([*error.clocks().values()][:-1], device=device)
    extremes = torch.cat([clocks, -clocks])
    distributed.all_reduce(extremes, op=distributed.ReduceOp.MAX, group=group)
    if not torch.equal(extremes, torch.cat([clocks, -clocks])):
        raise UsageError("processes of one run must sample the same calls; these did not")
    whole = error.copied()
    for tensor in whole.tensors().values():
        distributed.all_reduce(tensor, group=group)
    return whole
