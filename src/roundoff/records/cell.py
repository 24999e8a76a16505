"""`Cell`: one point of a sweep, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from roundoff.errors import UsageError

if TYPE_CHECKING:
    from roundoff.operators.protocol import Value

__all__ = ["Cell", "SubjectName"]


@dataclass(frozen=True, slots=True, order=True)
class SubjectName:
    """What is measured, by name: a kernel or a recipe.

    `layout` and `seq_multiple` say how a user's kernel is called; None leaves it to its
    declaration.

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

    def options(self) -> dict[str, Any]:
        """How it is called, as far as that was said."""
        said = {"layout": self.layout, "seq_multiple": self.seq_multiple}
        return {name: value for name, value in said.items() if value is not None}


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
        """The cell as plain JSON data, subjects by name, and their options where they have some."""
        plain = ("operator", "format", "seed", "device", "threads", "kind")
        record: dict[str, Any] = {name: getattr(self, name) for name in plain}
        record["params"] = dict(self.parameters)
        for role, subject in (("baseline", self.baseline), ("candidate", self.candidate)):
            record[role] = str(subject)
            if options := subject.options():
                record[f"{role}_options"] = options
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Cell:
        """The cell that `to_record` wrote."""
        plain = dict(record)
        subjects: dict[str, SubjectName] = {}
        for role in ("baseline", "candidate"):
            name = SubjectName.parse(plain.pop(role))
            subjects[role] = SubjectName(name.kind, name.name, **plain.pop(f"{role}_options", {}))
        return cls(parameters=plain.pop("params"), **subjects, **plain)
