"""`Cell`: one point of a sweep, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from roundoff.errors import UsageError

__all__ = ["Cell", "SubjectName"]

Value = int | float | str | bool | None


@dataclass(frozen=True, slots=True, order=True)
class SubjectName:
    """What is measured, by name: a kernel or a recipe; `place` options are for users' kernels.

    >>> str(SubjectName.parse("recipe:fa2")), SubjectName.parse("torch-math").kind
    ('recipe:fa2', 'kernel')
    """

    kind: Literal["kernel", "recipe"]
    name: str
    layout: Literal["bhsd", "bshd"] | None = None
    seq_multiple: int | None = None

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"

    @classmethod
    def parse(cls, text: str, kind: Literal["kernel", "recipe"] = "kernel") -> SubjectName:
        """`kernel:NAME`, `recipe:NAME`, or NAME of the given kind."""
        head, _, rest = text.partition(":")
        if head in ("kernel", "recipe") and rest:
            return cls(head, rest)  # type: ignore[arg-type]
        if not text:
            raise UsageError("an empty name; expected a kernel or a recipe")
        return cls(kind, text)


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement to make: a candidate against a baseline on one problem.

    `parameters` are the operator's, all of them, defaults filled in. A `timing` cell runs
    alone and measures seconds; an `accuracy` cell measures deviations.
    """

    operator: str
    baseline: SubjectName
    candidate: SubjectName
    format: str
    parameters: Mapping[str, Value]
    seed: int
    device: str = "cpu"
    threads: int = 1
    kind: Literal["accuracy", "timing"] = "accuracy"

    def to_record(self) -> dict[str, Any]:
        """The cell as plain JSON data, subjects by name."""
        record = asdict(self)
        record["params"] = record.pop("parameters")
        return record | {"baseline": str(self.baseline), "candidate": str(self.candidate)}
