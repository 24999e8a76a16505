"""What a kernel gave on the probes: the bits that an explanation has to give, too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from roundoff.errors import KernelError, UnsupportedError
from roundoff.operators.protocol import Probe, Problem
from roundoff.subjects import Subject

__all__ = ["Witness", "same", "testify", "witnesses"]


@dataclass(frozen=True, slots=True)
class Witness:
    """A probe, the shape of it that the kernel took, and the kernel's first output there."""

    probe: Probe
    problem: Problem
    output: Tensor


def testify(subject: Subject, problem: Problem) -> Tensor:
    """The kernel's first output at the problem's rows, in float64.

    Raises `UnsupportedError` for a problem that it does not take, `KernelError` if it fails.
    """
    operator = subject.operator
    if reason := subject.refuses(problem):
        raise UnsupportedError(reason)
    golden, _ = operator.golden(problem)
    return subject.run(problem, golden).outputs[operator.outputs[0]].double()


def witnesses(subject: Subject, probes: Iterable[Probe], *, device: str = "cpu") -> list[Witness]:
    """What the kernel gives on each probe that it takes in some shape; the others are left out."""
    found: list[Witness] = []
    for probe in probes:
        for make in probe.problems:
            problem = make().to(device)
            try:
                found.append(Witness(probe, problem, testify(subject, problem)))
            except (KernelError, UnsupportedError):
                continue
            break
    return found


def same(a: Tensor, b: Tensor) -> Tensor:
    """Where two outputs hold one number; NaN is one."""
    return (a == b) | (a.isnan() & b.isnan())
