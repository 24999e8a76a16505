"""A spike: values of a running series that left their past behind."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Spike"]


@dataclass(frozen=True)
class Spike:
    """A stretch of values beyond what a rule allows.

    `step` is that of its first value and `told` the one at which the rule's patience ended;
    `value` is its largest so far (NaN before all else), `usual` the centre of the values before,
    and `bound` what the rule would have let pass. Both are NaN where there is no past.
    """

    series: str
    step: int
    told: int
    value: float
    usual: float
    bound: float
    rule: str

    def to_record(self) -> dict[str, Any]:
        """The fields as one mapping."""
        return asdict(self)

    def __str__(self) -> str:
        beside = f", usually {self.usual:.4g}" if self.usual == self.usual else ""
        return f"step {self.step}: {self.series} is {self.value:.4g}{beside} ({self.rule})"
