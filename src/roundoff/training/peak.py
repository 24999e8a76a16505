"""Peak memory of a training step, measured in a fresh process: `python -m roundoff.training.peak`.

On a CPU it is the highest resident memory that Linux saw while steps were taken (VmHWM, reset
before them); on CUDA what torch's allocator had handed out at most. Both above their level between
two steps: weights, moments and gradients, which no attention changes, are not in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from roundoff.errors import CellError
from roundoff.training.arms import Arm
from roundoff.training.experiment import Experiment
from roundoff.training.runner import Runner
from roundoff.training.timing import native
from roundoff.training.variants import AS_IT_IS, attended

__all__ = ["peak_above_rest", "peak_of"]

WARM_UP, STEPS = 2, 3
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGE = 1 << 16
"""Blocks from this size on are given back as they are freed: what is resident is in use."""


def peak_of(experiment: Experiment, attention: str | None) -> int | None:
    """Bytes that a step with this attention (None: the model's own) takes at its highest.

    Above its level between steps; None where the system does not tell. Errors: `CellError`.
    """
    asked = json.dumps([experiment.to_record(), attention])
    done = subprocess.run(
        [sys.executable, "-m", "roundoff.training.peak", asked],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        raise CellError(f"peak memory with {attention or 'the own attention'}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_above_rest(step: Callable[[], object], device: str) -> int | None:
    """The bytes that `step` takes at its highest, above what it begins with."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        begin = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - begin
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        begin = _resident("VmRSS")
        step()
        return _resident("VmHWM") - begin
    except (OSError, AttributeError, KeyError):  # another system, or a container that refuses
        return None


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(dict(line.split(":", 1) for line in lines)[name].split()[0])


def _give_back_at_once() -> None:
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, LARGE)


def main(asked: str) -> None:
    """Measure, and write the bytes as the last line of standard output."""
    record, attention = json.loads(asked)
    _give_back_at_once()
    experiment = Experiment.from_record(record)
    torch.set_num_threads(experiment.threads)
    variant = AS_IT_IS if attention is None else attended(native(attention))
    with Runner(experiment, experiment.seed, Arm("measured", "model", variant)) as runner:

        def steps(first: int, count: int) -> None:
            for number in range(first, first + count):
                runner.gradients(number)
                runner.update()

        steps(0, WARM_UP)
        found = peak_above_rest(lambda: steps(WARM_UP, STEPS), runner.device)
    sys.stdout.write(f"\n{json.dumps(found)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
