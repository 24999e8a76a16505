"""`Sweep` and `Plan`: which cells, as data. Nothing is drawn or run here."""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from roundoff.errors import UnknownNameError, UsageError
from roundoff.formats import FORMATS, Format, get_format
from roundoff.kernels import KERNELS, kernels_of
from roundoff.operators import OPERATORS
from roundoff.operators.inputs import MOST_SEED
from roundoff.operators.protocol import Operator, Value, normalise, parse_axis
from roundoff.records import Cell, SubjectName

__all__ = ["Plan", "Sweep", "catalogued", "groups", "make_plan", "read_plan", "seconds"]

SECONDS_PER_OPERATION = 7e-11
"""Measured on one core of a cloud server (AMD EPYC): `torch-cpu-flash`, `fa2` and `paper-bf16`
against `torch-math` at 512, 1024 and 2048 keys, with and without a causal mask, in bf16 and fp32,
took 8.0 s for 1.1e11 operations, drawing, golden and metrics included. With 128 sampled rows it
is a quarter of that, at 64 keys ten times as much."""
SECONDS_PER_TIMING = 1.0


def _texts(value: object) -> object:
    """A scalar, a list or "a,b" of a TOML file as the list of texts that the axes take."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, list | tuple):
        return [str(item) for item in cast("list[object]", value)]
    return [str(value)]


Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]


class Sweep(BaseModel):
    """Every combination of candidates, formats, axes and seeds, against one baseline.

    `axes` maps a parameter of the operator to its values, spelled as on the command line
    (`512:4096:x2`). Axes that only recipes have (`tile`) do not multiply kernels, and seeds
    do not multiply inputs from a file, unless they sample its rows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    operator: str = "attention"
    baseline: str
    kernels: Texts = ()
    recipes: Texts = ()
    formats: Texts = Field(default=("bf16",), min_length=1)
    axes: dict[str, Texts] = Field(default_factory=dict[str, Texts])
    seeds: int = Field(default=5, ge=1)
    first_seed: int = Field(default=0, ge=0, le=MOST_SEED)
    device: str = "cpu"
    threads: int = Field(default=1, ge=1)
    layout: Literal["bhsd", "bshd"] | None = None
    seq_multiple: int | None = Field(default=None, ge=1)
    timing: bool = False

    @field_validator("operator")
    @classmethod
    def _known_operator(cls, name: str) -> str:
        _checked(partial(OPERATORS.__getitem__, name))
        return name

    @field_validator("baseline")
    @classmethod
    def _known_baseline(cls, text: str, info: ValidationInfo) -> str:
        _checked(partial(_check_subject, text, "kernel", info))
        return text

    @field_validator("kernels", "recipes")
    @classmethod
    def _known_subjects(cls, texts: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        kind: Literal["kernel", "recipe"] = "recipe" if info.field_name == "recipes" else "kernel"
        _checked(*(partial(_check_subject, text, kind, info) for text in texts))
        return texts

    @field_validator("formats")
    @classmethod
    def _known_formats(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        _checked(*(partial(get_format, text) for text in texts))
        return texts

    @field_validator("axes")
    @classmethod
    def _known_axes(
        cls, axes: dict[str, tuple[str, ...]], info: ValidationInfo
    ) -> dict[str, tuple[str, ...]]:
        if operator := _operator(info):
            _checked(*(partial(_axis, operator, name, texts) for name, texts in axes.items()))
        return axes

    @field_validator("device")
    @classmethod
    def _known_device(cls, name: str) -> str:
        if not re.fullmatch(r"cpu|cuda(:\d+)?", name, re.ASCII):
            raise ValueError(f"unknown device {name!r}; expected cpu, cuda or cuda:<number>")
        return name

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
        formats = dict.fromkeys(catalogued(text).name for text in self.formats)
        for format, point in itertools.product(formats, _product(shared)):
            parameters = operator.settle(point)
            choices = [operator.settle(point | choice) for choice in _product(own)]
            for seed in seeds if _draws(operator, parameters) else seeds[:1]:
                for parsed in choices:
                    yield format, seed, parameters, {n: parsed[n] for n in own}

    def _kinds(
        self, baseline: SubjectName, candidate: SubjectName, format: str,
        parameters: dict[str, Value], seed: int,
    ) -> Iterator[Cell]:  # fmt: skip
        place = (self.operator, baseline, candidate, format, parameters, seed, self.device)
        yield Cell(*place, self.threads)
        if self.timing and seed == self.first_seed and candidate.kind == "kernel":
            yield Cell(*place, self.threads, "timing")


def catalogued(text: str) -> Format:
    """The format of a name; one with the numbers of a catalogue entry is that entry.

    >>> catalogued("bfloat16").name, catalogued("e8m7").name, catalogued("e8m6").name
    ('bf16', 'bf16', 'e8m6')
    """
    format = get_format(text)
    return next((f for f in FORMATS.values() if replace(format, name=f.name) == f), format)


def _checked(*questions: Callable[[], object]) -> None:
    """Ask all; what is wrong, all of it, is one ValueError, as pydantic wants it."""
    wrong: list[str] = []
    for ask in questions:
        try:
            ask()
        except UsageError as error:
            wrong.append(str(error))
    if wrong:
        raise ValueError("; ".join(wrong))


def _operator(info: ValidationInfo) -> Operator | None:
    """The sweep's operator, unless it is itself what is wrong."""
    name = info.data.get("operator")
    return None if name is None else OPERATORS[name]


def _check_subject(text: str, kind: Literal["kernel", "recipe"], info: ValidationInfo) -> None:
    """A user's kernel is not imported here, so all that is asked of it is a colon."""
    operator, name = _operator(info), SubjectName.parse(text, kind)
    if operator is None:
        return
    if name.kind == "recipe":
        _ = operator.recipes[name.name.removesuffix("~reordered")]
    elif ":" not in name.name and name.name not in KERNELS:
        raise UnknownNameError("kernel", name.name, [k.name for k in kernels_of(operator.name)])


def _axis(operator: Operator, name: str, texts: tuple[str, ...]) -> list[Value]:
    normalise(operator.parameters, {name: None})  # an unknown name is an error, with near ones
    if not texts:
        raise UsageError(f"--{name.replace('_', '-')}: expected at least one value")
    return [v for text in texts for v in parse_axis(operator.parameters[name], text)]


def _draws(operator: Operator, parameters: Mapping[str, Value]) -> bool:
    """Whether another seed is another measurement: not of one file's tensors, all rows of them.

    As cells of their own they would count as independent, and shrink every standard error.
    """
    return parameters.get("rows") is not None or not operator.content(parameters)


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


def seconds(plan: Plan) -> float:
    """About how long a plan takes on one core, by its operations and its timings.

    An order of magnitude: short calls, wide formats and other operators cost more an operation.
    """
    timings = sum(cell.kind == "timing" for cell in plan.cells())
    return plan.cost() * SECONDS_PER_OPERATION + timings * SECONDS_PER_TIMING


def groups(cells: list[Cell]) -> list[list[Cell]]:
    """Cells in groups that share a problem."""
    found: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        found.setdefault(_shared_key(cell), []).append(cell)
    return list(found.values())


def read_plan(path: Path) -> Plan:
    """The plan in a TOML file, or a UsageError that lists all that is wrong with it."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the plan {str(path)!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no TOML: {error}") from None
    return make_plan(document, start=f"{path} is no plan: ")


def make_plan(
    document: Mapping[str, Any], *, start: str = "", place: Callable[[str], str] = "{}: ".format
) -> Plan:
    """The plan that a document describes, or a UsageError that lists all that is wrong.

    `place` turns where an error is (`sweep.0.seeds`) into what its message begins with.

    >>> make_plan({"sweep": [{"baseline": "torch-math", "seeds": 0, "formats": "bf15"}]})
    Traceback (most recent call last):
    ...
    roundoff.errors.UsageError: sweep.0.formats: unknown format 'bf15'; did you mean 'bf16'?; ...
    """
    try:
        return Plan.model_validate(document)
    except ValidationError as error:
        found = error.errors(include_url=False)
        # A sweep that is wrong is not counted, so that the list of them is too short as well.
        inner = [e for e in found if len(e["loc"]) > 1] or found
        wrong = (
            place(".".join(map(str, e["loc"]))) + e["msg"].removeprefix("Value error, ")
            for e in inner
        )
        raise UsageError(start + "; ".join(wrong)) from None
