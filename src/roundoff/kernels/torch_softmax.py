"""torch.softmax over the last axis."""

from __future__ import annotations

import torch

from roundoff.kernels.kernel import Call, Kernel, stored_inputs, takes
from roundoff.operators.protocol import Problem

__all__ = ["SOFTMAX"]


def _bind(problem: Problem) -> Call:
    x = stored_inputs(problem)["x"]
    return lambda: {"y": torch.softmax(x, -1)}


SOFTMAX = Kernel(
    name="torch-softmax", operator="softmax", doc="torch.softmax", bind=_bind,
    refuses=takes("bf16", "fp16", "fp32", "fp64"), expects=("aten::_softmax",),
)  # fmt: skip
