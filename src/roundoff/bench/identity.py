"""The identity of a cell: equal exactly when measuring again could give nothing new.

docs/design/01-study.md lists what goes in, and what stays out.
"""

from __future__ import annotations

from functools import cache

from roundoff.bench.plan import catalogued
from roundoff.operators import OPERATORS
from roundoff.operators.protocol import Value
from roundoff.records import Cell, Environment, SubjectName
from roundoff.sites import wire
from roundoff.store.json import digest
from roundoff.subjects import resolve_subject

__all__ = ["cell_id", "environment_digest", "environment_of"]


def cell_id(cell: Cell) -> str:
    """The id of `cell` in this environment: 16 hex digits.

    However the cell is spelled: defaults given or not, `1` or `1.0`, `bfloat16` or `bf16`. The
    path of a user's kernel and of a file of inputs is not part of it, their content is.
    """
    parameters = _parameters(cell)
    return digest(
        {
            "operator": cell.operator,
            "kind": cell.kind,
            "format": wire(catalogued(cell.format)),
            "parameters": {
                **parameters,
                **OPERATORS[cell.operator].content(parameters),
            },
            "seed": cell.seed,
            "baseline": _fingerprint(cell.operator, cell.baseline),
            "candidate": _fingerprint(cell.operator, cell.candidate),
            "environment": environment_digest(cell),
        }
    )


def _parameters(cell: Cell) -> dict[str, Value]:
    """All parameters, normalised; those that only recipes have say nothing of a kernel."""
    operator = OPERATORS[cell.operator]
    declared, parameters = operator.parameters, operator.settle(cell.parameters)
    if cell.candidate.kind == "recipe":
        return parameters
    return {n: declared[n].default if declared[n].recipe_only else v for n, v in parameters.items()}


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
    return digest(resolve_subject(OPERATORS[operator], name).fingerprint())
