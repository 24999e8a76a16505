"""The proof of what ran, for libraries whose work torch's profiler does not see."""

from __future__ import annotations

from torch.autograd.profiler import record_function

from roundoff.kernels.kernel import Call
from roundoff.operators.protocol import Outputs

__all__ = ["announced"]


def announced(event: str, call: Call) -> Call:
    """`call`, which shows itself to the spy under the name `event`.

    Such an event proves no more than its adapter has checked before: the optimised graph of
    an ONNX session, the compiled program of XLA, the way in which Triton runs. What that is
    stands in the module of the adapter.
    """

    def run() -> Outputs:
        with record_function(event):
            return call()

    return run
