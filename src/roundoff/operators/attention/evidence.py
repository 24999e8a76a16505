"""What is known of recipes: how far each was found to give its kernel's bits, and where.

`evidence.toml` is written by `python benchmarks/record.py evidence` and reviewed like code.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any

__all__ = ["EVIDENCE", "Evidence", "Held", "evidence_of", "percent"]

EVIDENCE = "evidence.toml"


@dataclass(frozen=True, slots=True)
class Held:
    """A recipe beside its kernel in one format, over `cells` cells.

    `match`, `null` and `lift` are shares of bit-identical elements (docs/recipes.md), `floor` what
    another order of the recipe's own sums leaves of them, `worst` the match of the worst cell.
    `r2` is the squared correlation of the recipe's error with the kernel's.
    """

    match: float
    null: float
    lift: float
    floor: float
    worst: float
    r2: float
    cells: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """Where a recipe was run beside its kernel, and what was found: output, format, `Held`.

    Outputs are `out`, and `dq`, `dk`, `dv` where gradients were compared.
    """

    version: str
    instructions: str
    processor: str
    date: str
    held: Mapping[str, Mapping[str, Held]]

    def line(self) -> str:
        """What was found of the output in the format followed least, and the gradients' match."""
        format, held = min(self.held["out"].items(), key=lambda item: item[1].lift)
        gradients = [
            f"{output} {percent(min(h.match for h in formats.values()))}"
            for output, formats in self.held.items() if output != "out"
        ]  # fmt: skip
        words = f"{', '.join(gradients)}; " if gradients else ""
        return (
            f"run: {format} match {percent(held.match)}, null {percent(held.null)}, lift "
            f"{percent(held.lift)}, order floor {percent(held.floor)}; r2 {cut(held.r2)}; "
            f"{words}{self.version}, {self.instructions}"
        )


def evidence_of(recipe: str) -> Evidence | None:
    """The evidence of a recipe of attention, or None for one that was not run.

    >>> found = evidence_of("torch-math")
    >>> found.held["out"]["bf16"].match
    1.0
    >>> evidence_of("fa2") is None
    True
    """
    entry = _document().get(recipe)
    if entry is None:
        return None
    names = [field.name for field in fields(Evidence) if field.name != "held"]
    held = {
        output: {format: Held(**numbers) for format, numbers in formats.items()}
        for output, formats in entry.items()
        if output not in names
    }
    return Evidence(**{name: entry[name] for name in names}, held=held)


@cache
def _document() -> dict[str, Any]:
    place = files("roundoff.operators.attention").joinpath(EVIDENCE)
    return tomllib.loads(place.read_text(encoding="utf-8"))


def percent(share: float) -> str:
    """Four decimals, cut and not rounded: 100 % means every element.

    >>> percent(0.99999949)
    '99.9999 %'
    """
    return f"{math.floor(share * 1e6) / 1e4:g} %" if math.isfinite(share) else "-"


def cut(share: float) -> str:
    """Four decimals, cut and not rounded, as `percent`."""
    return f"{math.floor(share * 1e4) / 1e4:g}" if math.isfinite(share) else "-"
