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


def witnesses(
    subject: Subject, probes: Iterable[Probe], *, device: str = "cpu"
) -> tuple[list[Witness], str]:
    """What the kernel gives on each probe that it takes in some shape; the others are left out.

    And why it did not take the first that it did not take; a failure counts before a refusal.
    One that fails in all shapes of a probe that it does not refuse is not asked again.
    """
    found: list[Witness] = []
    failed: list[str] = []
    refused: list[str] = []
    for probe in probes:
        for make in probe.problems:
            problem = make().to(device)
            try:
                found.append(Witness(probe, problem, testify(subject, problem)))
            except KernelError as error:
                failed.append(str(error))
            except UnsupportedError as error:
                refused.append(str(error))
            else:
                break
        if failed and not found:
            break
    return found, next(iter((*failed, *refused)), "")


def same(a: Tensor, b: Tensor) -> Tensor:
    """Where two outputs hold one number; NaN is one."""
    return (a == b) | (a.isnan() & b.isnan())
