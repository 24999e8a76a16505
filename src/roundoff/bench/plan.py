"""`Sweep` and `Plan`: which cells, as data. Nothing is drawn, loaded or run here."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from roundoff.errors import UsageError
from roundoff.formats import get_format
from roundoff.operators import OPERATORS
from roundoff.operators.protocol import Operator, Value, normalise, parse_axis
from roundoff.records import Cell, SubjectName

__all__ = ["Plan", "Sweep", "read_plan"]


def _texts(value: object) -> object:
    """A scalar, a list or "a,b" of a TOML file as the list of texts that the axes take."""
    if isinstance(value, list | tuple):
        return [str(item) for item in value]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [str(value)]


Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]


class Sweep(BaseModel):
    """Every combination of candidates, formats, axes and seeds, against one baseline.

    `axes` maps a parameter of the operator to its values, spelled as on the command line
    (`512:4096:x2`). Axes that only recipes have (`tile`) do not multiply kernels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    operator: str = "attention"
    baseline: str
    kernels: Texts = ()
    recipes: Texts = ()
    formats: Texts = ("bf16",)
    axes: dict[str, Texts] = Field(default_factory=dict[str, Texts])
    seeds: int = Field(default=5, ge=1)
    first_seed: int = Field(default=0, ge=0)
    device: str = "cpu"
    threads: int = Field(default=1, ge=1)
    layout: Literal["bhsd", "bshd"] | None = None
    seq_multiple: int | None = Field(default=None, ge=1)
    timing: bool = False

    def cells(self) -> Iterator[Cell]:
        """The cells, those of one problem in a row; equal ones once."""
        operator = OPERATORS[self.operator]
        baseline = self._name(self.baseline, "kernel")
        candidates = [self._name(t, "kernel") for t in self.kernels]
        candidates += [self._name(t, "recipe") for t in self.recipes]
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        seen: set[tuple[object, ...]] = set()
        for format, seed, parameters, own in self._points(operator, seeds):
            for candidate in dict.fromkeys((baseline, *candidates)):
                mine = parameters if candidate.kind == "kernel" else parameters | own
                key = (format, seed, candidate, *mine.values())
                if key in seen:
                    continue
                seen.add(key)
                yield from self._kinds(baseline, candidate, format, mine, seed)

    def _name(self, text: str, kind: Literal["kernel", "recipe"]) -> SubjectName:
        name = SubjectName.parse(text, kind)
        if name.kind == "recipe" or ":" not in name.name:
            return name
        return SubjectName(name.kind, name.name, self.layout, self.seq_multiple)

    def _points(
        self, operator: Operator, seeds: range
    ) -> Iterator[tuple[str, int, dict[str, Value], dict[str, Value]]]:
        values = {name: _axis(operator, name, texts) for name, texts in self.axes.items()}
        own = {n: v for n, v in values.items() if operator.parameters[n].recipe_only}
        shared = {n: v for n, v in values.items() if n not in own}
        formats = dict.fromkeys(get_format(text).name for text in self.formats)
        for format, point, seed in itertools.product(formats, _product(shared), seeds):
            parameters = normalise(operator.parameters, point)
            for choice in _product(own):
                parsed = normalise(operator.parameters, point | choice)
                yield format, seed, parameters, {n: parsed[n] for n in own}

    def _kinds(
        self, baseline: SubjectName, candidate: SubjectName, format: str,
        parameters: dict[str, Value], seed: int,
    ) -> Iterator[Cell]:  # fmt: skip
        place = (self.operator, baseline, candidate, format, parameters, seed, self.device)
        yield Cell(*place, self.threads)
        if self.timing and seed == self.first_seed and candidate.kind == "kernel":
            yield Cell(*place, self.threads, "timing")


def _axis(operator: Operator, name: str, texts: tuple[str, ...]) -> list[Value]:
    normalise(operator.parameters, {name: None})  # an unknown name is an error, with near ones
    return [v for text in texts for v in parse_axis(operator.parameters[name], text)]


def _product(axes: Mapping[str, list[Value]]) -> Iterator[dict[str, Value]]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


class Plan(BaseModel):
    """Several sweeps that one run carries out; a TOML file is `[[sweep]]` tables."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sweep: tuple[Sweep, ...] = Field(min_length=1)

    def cells(self) -> list[Cell]:
        """The cells of all sweeps, equal ones once, cells of one problem together."""
        grouped: dict[tuple[object, ...], dict[Any, Cell]] = {}
        for sweep in self.sweep:
            for cell in sweep.cells():
                group = grouped.setdefault(_shared_key(cell), {})
                group.setdefault((cell.candidate, tuple(cell.parameters.items())), cell)
        return [cell for group in grouped.values() for cell in group.values()]

    def cost(self) -> float:
        """Floating-point operations of all calls, golden included once a problem."""
        cells = self.cells()
        problems = {_shared_key(cell): cell for cell in cells}
        total = sum(OPERATORS[c.operator].cost(c.parameters) for c in cells)
        return total + sum(OPERATORS[c.operator].cost(c.parameters) for c in problems.values())


def _shared_key(cell: Cell) -> tuple[object, ...]:
    """What cells must share to be measured on one draw: all but what only recipes see."""
    declared = OPERATORS[cell.operator].parameters
    shared = tuple((n, v) for n, v in cell.parameters.items() if not declared[n].recipe_only)
    return (
        cell.operator, cell.baseline, cell.format, shared, cell.seed, cell.device, cell.threads,
        cell.kind,
    )  # fmt: skip


def groups(cells: list[Cell]) -> list[list[Cell]]:
    """Cells in groups that share a problem."""
    found: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        found.setdefault(_shared_key(cell), []).append(cell)
    return list(found.values())


def read_plan(path: Path) -> Plan:
    """The plan in a TOML file, or a UsageError that lists all that is wrong, each with its place."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the plan {str(path)!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no TOML: {error}") from None
    try:
        return Plan.model_validate(document)
    except ValidationError as error:
        places = (
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)
        )
        raise UsageError(f"{path} is no plan: {'; '.join(places)}") from None
