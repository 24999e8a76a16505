"""The identity of a cell: equal exactly when measuring again could give nothing new.

docs/design/01-study.md lists what goes in, and what stays out.
"""

from __future__ import annotations


from functools import cache

from roundoff.bench.subjects import resolve_subject
from roundoff.formats import get_format
from roundoff.operators import OPERATORS
from roundoff.records import Cell, Environment, SubjectName
from roundoff.sites import wire
from roundoff.store.json import digest

__all__ = ["cell_id", "environment_of", "environment_digest"]


def cell_id(cell: Cell) -> str:
    """The id of `cell` in this environment: 16 hex digits."""
    operator = OPERATORS[cell.operator]
    return digest(
        {
            "cell": cell.to_record(),
            "format": wire(get_format(cell.format)),
            "baseline": _fingerprint(cell.operator, cell.baseline),
            "candidate": _fingerprint(cell.operator, cell.candidate),
            "content": dict(operator.content(cell.parameters)),
            "environment": environment_digest(cell),
        }
    )


def environment_of(cell: Cell) -> Environment:
    """The environment that `cell` is measured in, here and now."""
    return _environment(cell.device, cell.threads)


def environment_digest(cell: Cell) -> str:
    """The digest of the environment's numerics."""
    return _environment_digest(cell.device, cell.threads)


@cache
def _environment(device: str, threads: int) -> Environment:
    return Environment.here(device=device, threads=threads)


@cache
def _environment_digest(device: str, threads: int) -> str:
    return digest(_environment(device, threads).numerics())


@cache
def _fingerprint(operator: str, name: SubjectName) -> str:
    subject = resolve_subject(OPERATORS[operator], name)
    return digest({"kind": name.kind} | subject.fingerprint())
