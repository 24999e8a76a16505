"""What a monitor saw: readings of a step, and what stands out among them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Finding", "Reading"]


@dataclass(frozen=True)
class Reading:
    """The values of one thing at one step.

    `of` is the kind of tensor ("gradients", "attention", ...), `name` the parameter or module,
    `head` a head of attention. Where it is `pooled`, the name is a pattern: all that fits it, as
    one.
    """

    step: int
    of: str
    name: str
    values: dict[str, float]
    head: int | None = None
    pooled: bool = False

    def to_record(self) -> dict[str, Any]:
        """One flat mapping: step, of, name, pooled, head where there is one, and the values."""
        head = {} if self.head is None else {"head": self.head}
        place = {"of": self.of, "name": self.name, "pooled": self.pooled}
        return {"step": self.step, **place, **head, **self.values}

    @property
    def place(self) -> str:
        """The name, with the head in brackets.

        >>> Reading(3, "attention", "layers.1.attn", {}, head=2).place
        'layers.1.attn[2]'
        """
        return self.name if self.head is None else f"{self.name}[{self.head}]"


@dataclass(frozen=True)
class Finding:
    """Something that stands out: at which step, what, where, and in one line why."""

    step: int
    what: str
    name: str
    why: str
    head: int | None = None
    values: dict[str, float] = field(default_factory=dict[str, float])

    def to_record(self) -> dict[str, Any]:
        """The fields as one mapping."""
        return asdict(self)

    def __str__(self) -> str:
        place = self.name if self.head is None else f"{self.name}, head {self.head}"
        return f"step {self.step}: {place}: {self.why}"
