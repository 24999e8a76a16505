"""What every operator offers, so that nothing above needs to know which one it is.

The layers above see names: named inputs and outputs, parameters, recipes, sites.
This module imports no torch, so that options can be listed without it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from roundoff.errors import UnknownNameError, UsageError
from roundoff.formats import Format
from roundoff.registry import Registry
from roundoff.sites import Choice, Site

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Answer", "Label", "Operator", "Outputs", "Parameter", "Probe", "Problem", "Question", "Recipe",
    "ask", "normalise", "parse_axis",
]  # fmt: skip

Outputs = dict[str, "Tensor"]
Value = int | float | str | bool | None


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of an operator's cells, and one option of the command line.

    `parse` turns the option's text into a value and raises ValueError with a reason;
    `recipe_only` parameters change what a recipe does and mean nothing to a kernel.
    """

    name: str
    default: Value
    doc: str
    parse: Callable[[str], Value]
    recipe_only: bool = False


@dataclass(frozen=True, slots=True)
class Problem:
    """One call of an operator: inputs that have been rounded once to `format`.

    `inputs` hold the values in float32 (float64 where the format needs it), whatever
    `format` is; kernels get them in their real dtype. `rows` are the sampled output
    rows (None: all), on which golden and recipes compute and kernels are looked at.
    """

    inputs: Mapping[str, Tensor]
    format: Format
    parameters: Mapping[str, Value]
    rows: Tensor | None = None

    def to(self, device: str) -> Problem:
        """The same on another device."""
        inputs = {name: x.to(device) for name, x in self.inputs.items()}
        return replace(
            self, inputs=inputs, rows=None if self.rows is None else self.rows.to(device)
        )

    def with_parameters(self, **changes: Value) -> Problem:
        """The same inputs under other parameters."""
        return replace(self, parameters={**self.parameters, **changes})


Label = str | int | None


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to a question: its label, and the fields of a recipe (dotted paths) it sets."""

    label: Label
    changes: Mapping[str, Choice]

    def fits(self, recipe: object) -> bool:
        """Whether `recipe` has these fields already."""
        return all(attrgetter(path)(recipe) == value for path, value in self.changes.items())


@dataclass(frozen=True, slots=True)
class Question:
    """One thing to find out about a kernel: what it does at a site, or in which order.

    Questions of one `group` are answered together, since an answer to one can only be seen
    beside the right answers to the others.
    """

    name: str
    doc: str
    group: str
    answers: tuple[Answer, ...]

    def label(self, recipe: object) -> Label:
        """What `recipe` answers; "other" if it is none of the answers."""
        return next((a.label for a in self.answers if a.fits(recipe)), "other")


def ask(name: str, doc: str, group: str, answers: Mapping[Any, Mapping[str, Choice]]) -> Question:
    """A question from a mapping of labels to the fields that they set."""
    return Question(name, doc, group, tuple(Answer(label, c) for label, c in answers.items()))


@dataclass(frozen=True, slots=True)
class Probe:
    """Inputs whose output shows what a kernel does.

    `problems` make the same inputs in several shapes, of which a kernel gets the first that it
    takes; `groups` name the questions that they show.
    """

    name: str
    doc: str
    groups: tuple[str, ...]
    problems: tuple[Callable[[], Problem], ...]


class Recipe(Protocol):
    """What a kernel does at every site: a frozen value, one type for each operator."""

    @property
    def name(self) -> str:
        """The short name, shared with the kernel that the recipe describes."""
        ...

    @property
    def doc(self) -> str:
        """One line: what it describes, and how that is known."""
        ...

    def sites(self) -> tuple[Site, ...]:
        """The places at which this recipe can round."""
        ...

    def choose(self, choices: Mapping[str, Choice]) -> Recipe:
        """The same recipe with other choices at the named sites."""
        ...


class Operator(Protocol):
    """Something with named inputs, outputs and a golden function."""

    name: str
    doc: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]  # all that a problem can ask for, the first of them always
    statistics: tuple[str, ...]  # outputs that are kept in fp32, whatever the inputs' format
    row_axes: Mapping[str, int]  # the axis that numbers an output's rows, if it has one
    cluster_dims: int  # leading axes of an output that number its independent clusters
    row_axes: ClassVar[Mapping[str, int]]  # which axis of an output counts its rows
    parameters: Mapping[str, Parameter]
    distributions: Mapping[str, str]  # inputs that can be drawn, with one line each

    @property
    def recipes(self) -> Registry[Any]:
        """The catalogue."""
        ...

    def settle(self, given: Mapping[str, Value]) -> dict[str, Value]:
        """All parameters of a cell in one spelling, or a `UsageError` if they do not fit.

        Two calls that mean one problem give equal parameters: defaults are filled in, and a
        value that says what its default would is that default.
        """
        ...

    def draw(self, parameters: Mapping[str, Value], format: Format, seed: int) -> Problem:
        """Draw the inputs, and round them once to `format`."""
        ...

    def golden(self, problem: Problem) -> tuple[Outputs, dict[str, float]]:
        """The outputs in float64 at the problem's rows, and how hard the problem is."""
        ...

    def run(self, recipe: Any, problem: Problem) -> tuple[Outputs, dict[str, float]]:
        """The outputs of a recipe at the problem's rows, and its probes."""
        ...

    def reordered(self, recipe: Any) -> Any:
        """The same recipe with every sum from last to first: the floor that order sets."""
        ...

    def fields(self, recipe: Any) -> dict[str, Any]:
        """What decides a recipe's numbers: all but its words. `sites.wire` makes it JSON."""
        ...

    def take_rows(self, outputs: Outputs, problem: Problem) -> Outputs:
        """The problem's rows of outputs that hold all rows."""
        ...

    def precise(self, problem: Problem) -> tuple[Problem, Outputs, Outputs]:
        """Golden far beyond float64 for float64 candidates, at as few rows as it can afford.

        Returns the problem at those rows, golden rounded to float64, and what that
        rounding left out, so that an error of less than an ulp can be measured.
        """
        ...

    def questions(self, format: Format) -> tuple[Question, ...]:
        """What can be asked of a kernel with inputs of `format`: the space of its recipes."""
        ...

    def probes(self, format: Format, seed: int) -> tuple[Probe, ...]:
        """Problems that answer the questions."""
        ...

    def natural(self) -> tuple[Mapping[str, Value], ...]:
        """Parameters of ordinary inputs, of which a kernel is given the first that it takes."""
        ...

    def settled(self, recipe: Any, problem: Problem) -> Any:
        """The recipe for one problem: storage format, and a tile that depends on it, put in."""
        ...

    def cost(self, parameters: Mapping[str, Value]) -> float:
        """Floating-point operations of one call, for plans and time limits."""
        ...

    def content(self, parameters: Mapping[str, Value]) -> Mapping[str, str]:
        """Digests of the files that the inputs come from (empty: drawn from the seed)."""
        ...


def normalise(parameters: Mapping[str, Parameter], given: Mapping[str, Value]) -> dict[str, Value]:
    """All parameters in their declared order, defaults filled in, values in one type.

    >>> p = {"scale": Parameter("scale", 1.0, "", float)}
    >>> normalise(p, {"scale": 2}), normalise(p, {})
    ({'scale': 2.0}, {'scale': 1.0})
    """
    for name in given:
        if name not in parameters:
            raise UnknownNameError("parameter", name, parameters)
    return {
        name: _parsed(p, given[name]) if name in given else p.default
        for name, p in parameters.items()
    }


def _parsed(parameter: Parameter, value: Value) -> Value:
    if value is None:
        return None
    try:
        return parameter.parse(str(value))
    except ValueError as error:
        option = parameter.name.replace("_", "-")
        raise UsageError(f"--{option} {value!r}: {error}") from None


def parse_axis(parameter: Parameter, text: str) -> list[Value]:
    """The values of one axis: a comma list of values and of ranges.

    `512:4096:x2` is 512, 1024, 2048, 4096; `1:9:+4` is 1, 5, 9.

    >>> parse_axis(Parameter("n", 1, "", int), "1,512:2048:x2")
    [1, 512, 1024, 2048]
    """
    values: list[Value] = []
    for part in text.split(","):
        if _RANGE.fullmatch(part):
            values += _range(parameter, part)
        else:
            values.append(_parsed(parameter, part))
    return list(dict.fromkeys(values))


_RANGE = re.compile(r"[-+.\d][^:]*:[^:]+:[x+][^:]*")
_MOST = 10_000


def _range(parameter: Parameter, text: str) -> list[Value]:
    pieces = text.split(":")
    try:
        start, stop, step = float(pieces[0]), float(pieces[1]), float(pieces[2][1:])
    except ValueError:
        raise UsageError(
            f"{text!r} is no range; expected start:stop:x2 or start:stop:+64"
        ) from None
    factor = pieces[2][0] == "x"
    grows = (start > 0 and step > 1) if factor else step > 0
    if not (-math.inf < start < stop < math.inf and grows and step < math.inf):
        raise UsageError(
            f"the range {text!r} never reaches its end; expected start < stop, x2 or +64"
        )
    slack = stop + abs(stop) * 1e-12
    values: list[Value] = []
    at = start
    while len(values) <= _MOST:
        if at > slack:
            return values
        values.append(_parsed(parameter, f"{at:.12g}"))
        at = at * step if factor else start + step * len(values)
    raise UsageError(f"the range {text!r} has more than {_MOST} values; take a larger step")
