"""Models that train in several processes: what each holds, and one error of all."""

from __future__ import annotations

import torch
from torch import nn

from roundoff.errors import UnsupportedError, UsageError
from roundoff.metrics.direct import DirectError
from roundoff.state.processes import distributed, inner_model

__all__ = ["of_all_processes", "undistributed"]


def undistributed(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, whose own forward pass talks to other processes.

    `UnsupportedError` for weights of which each process holds a part.
    """
    inner = inner_model(model)
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
    library = distributed()
    if library is None:
        return error
    group = getattr(model, "process_group", None)
    device = next(iter(model.parameters())).device
    clocks = torch.tensor([*error.clocks().values()][:-1], device=device)
    extremes = torch.cat([clocks, -clocks])
    library.all_reduce(extremes, op=library.ReduceOp.MAX, group=group)
    if not torch.equal(extremes, torch.cat([clocks, -clocks])):
        raise UsageError("processes of one run must sample the same calls; these did not")
    whole = error.copied()
    for tensor in whole.tensors().values():
        library.all_reduce(tensor, group=group)
    return whole
