"""torch.softmax over the last axis."""

from __future__ import annotations

import torch

from roundoff.kernels.kernel import Kernel, stored_inputs
from roundoff.operators.protocol import Outputs, Problem

__all__ = ["SOFTMAX"]


def _run(problem: Problem) -> Outputs:
    return {"y": torch.softmax(stored_inputs(problem)["x"], -1)}


SOFTMAX = Kernel("torch-softmax", "softmax", "torch.softmax", _run, expects=("aten::_softmax",))
