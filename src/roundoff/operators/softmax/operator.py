"""Softmax as an operator of the framework: its parameters, inputs, golden and recipes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, cast

import torch
from torch import Tensor

from roundoff.formats import Format
from roundoff.operators.inputs import randn, split, stored
from roundoff.operators.parsing import distribution, positive
from roundoff.operators.protocol import (
    Outputs,
    Parameter,
    Probe,
    Problem,
    Question,
    Value,
    normalise,
)
from roundoff.operators.rowwise import Rowwise, rescale_probes
from roundoff.operators.softmax import golden
from roundoff.operators.softmax.catalogue import RECIPES
from roundoff.operators.softmax.engine import soften
from roundoff.operators.softmax.probes import probes
from roundoff.operators.softmax.questions import questions
from roundoff.operators.softmax.recipe import Recipe
from roundoff.registry import Registry
from roundoff.sites import resolve

__all__ = ["SOFTMAX", "Softmax"]

PRECISE_EXPONENTIALS = 20_000
"""Exponentials that `precise` may take: about a second of mpmath."""

DISTRIBUTIONS: Mapping[str, str] = {
    "normal": "x ~ N(0, 1); normal:4 draws N(0, 4^2)",
    "peaked": "one column of each row stands out by 20; peaked:30 by 30",
    "offset": "N(0, 1) plus 16 on every row, which softmax cancels; offset:100 adds 100",
}
DEFAULT_NUMBERS = {"normal": 1.0, "peaked": 20.0, "offset": 16.0}


def parse_inputs(text: str) -> str:
    """Check the spelling of a distribution, and write its number in one way.

    >>> parse_inputs("offset:16")
    'offset'
    """
    return distribution(text, DISTRIBUTIONS, DEFAULT_NUMBERS)


PARAMETERS: Mapping[str, Parameter] = {
    p.name: p
    for p in (
        Parameter("rows", 64, "number of rows", positive),
        Parameter("length", 4096, "columns of a row", positive),
        Parameter("inputs", "normal", ", ".join(DISTRIBUTIONS), parse_inputs),
        Parameter(
            "tile", None, "columns a tile (default: the recipe's)", positive, recipe_only=True
        ),
    )
}


class Softmax(Rowwise):
    """exp(x) / sum exp(x) along the rows of a matrix."""

    name = "softmax"
    doc = "softmax along the rows of a matrix, and its log-sum-exp"
    inputs: tuple[str, ...] = ("x",)
    outputs: tuple[str, ...] = ("y", "lse")
    statistics: tuple[str, ...] = ("lse",)
    row_axes: ClassVar[Mapping[str, int]] = {"y": 0, "lse": 0}
    cluster_dims = 1
    parameters: Mapping[str, Parameter] = PARAMETERS
    distributions: Mapping[str, str] = DISTRIBUTIONS

    @property
    def recipes(self) -> Registry[Recipe]:
        """The catalogue of softmax recipes."""
        return RECIPES

    def draw(self, parameters: Mapping[str, Value], format: Format, seed: int) -> Problem:
        """Draw x [rows, length] in float64, and round it once to `format`."""
        rows, length = cast(int, parameters["rows"]), cast(int, parameters["length"])
        kind, _, _ = str(parameters["inputs"]).partition(":")
        _, height = split(str(parameters["inputs"]), DEFAULT_NUMBERS[kind])
        generator = torch.Generator().manual_seed(seed)
        x = randn((rows, length), generator)
        if kind == "normal":
            x = x * height
        elif kind == "offset":
            x = x + height
        else:
            at = torch.randint(0, length, (rows, 1), device="cpu", generator=generator)
            x = x.scatter_add(1, at, torch.full_like(at, 1.0, dtype=x.dtype) * height)
        return Problem({"x": stored(x, format)}, format, parameters)

    def settle(self, given: Mapping[str, Value]) -> dict[str, Value]:
        """All parameters in one spelling."""
        return normalise(PARAMETERS, given)

    def golden(self, problem: Problem) -> tuple[Outputs, dict[str, float]]:
        """y and log-sum-exp in float64 at the problem's rows, and the condition."""
        (y, lse), condition = golden.golden(_at_rows(problem))
        return {"y": y, "lse": lse}, condition

    def run(self, recipe: Recipe, problem: Problem) -> tuple[Outputs, dict[str, float]]:
        """What `recipe` gives at the problem's rows, and how often a row rescaled."""
        tile = cast("int | None", problem.parameters.get("tile"))
        if tile is not None:
            recipe = replace(recipe, tile=tile)
        result = soften(recipe, _at_rows(problem), problem.format)
        probes = rescale_probes(result.rescales, result.rescaled_by)
        return {"y": result.y, "lse": result.lse}, probes

    def precise(self, problem: Problem) -> tuple[Problem, Outputs, Outputs]:
        """Golden with 50 digits, at as many rows as a second allows."""
        x = problem.inputs["x"]
        rows = torch.arange(len(x), device=x.device) if problem.rows is None else problem.rows
        step = max(1, math.ceil(len(rows) * x.shape[-1] / PRECISE_EXPONENTIALS))
        fewer = replace(problem, rows=rows[::step])
        high, low = golden.precise(_at_rows(fewer))
        return fewer, {"y": high[0], "lse": high[1]}, {"y": low[0], "lse": low[1]}

    def questions(self, format: Format) -> tuple[Question, ...]:
        """The space that `explain` searches."""
        return questions(format)

    def probes(self, format: Format, seed: int) -> tuple[Probe, ...]:
        """Inputs that show one site each, whatever the order of sums."""
        return probes(format, seed)

    def natural(self) -> tuple[Mapping[str, Value], ...]:
        """A few thousand columns, first an odd number of them."""
        return tuple({"rows": 64, "length": n} for n in (2051, 2048, 512))

    def settled(self, recipe: Recipe, problem: Problem) -> Recipe:
        """The recipe for one problem: storage format put in."""
        return resolve(recipe, problem.format)

    def cost(self, parameters: Mapping[str, Value]) -> float:
        """Operations of one call: about ten an element."""
        return 10.0 * cast(int, parameters["rows"]) * cast(int, parameters["length"])

    def content(self, parameters: Mapping[str, Value]) -> Mapping[str, str]:
        """Nothing is read from files."""
        del parameters
        return {}


def _at_rows(problem: Problem) -> Tensor:
    x = problem.inputs["x"]
    return x if problem.rows is None else x.index_select(0, problem.rows)


SOFTMAX = Softmax()
