"""Attention as an operator of the framework: its inputs, golden, recipes and parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch

from roundoff.formats import Format
from roundoff.operators.attention import distributions, golden
from roundoff.operators.attention.backward import Gradients, attend_keeping, differentiate
from roundoff.operators.attention.call import Call
from roundoff.operators.attention.catalogue import RECIPES
from roundoff.operators.attention.engine import attend
from roundoff.operators.attention.golden_gradients import golden_gradients
from roundoff.operators.attention.masks import make_mask
from roundoff.operators.attention.parameters import DISTRIBUTIONS, PARAMETERS, lengths, settle
from roundoff.operators.attention.probes import probes
from roundoff.operators.attention.questions import questions
from roundoff.operators.attention.recipe import Recipe, Tile
from roundoff.operators.attention.ties import tied_share
from roundoff.operators.inputs import sampled_rows, stored
from roundoff.operators.protocol import Outputs, Parameter, Probe, Problem, Question, Value
from roundoff.operators.rowwise import Rowwise, rescale_probes
from roundoff.registry import Registry

__all__ = ["ATTENTION", "Attention", "call_of"]

PRECISE_PRODUCTS = 400_000
"""Multiplications that `precise` may take: about a second of mpmath."""


class Attention(Rowwise):
    """softmax(QK^T * scale + mask) V over tensors [batch, heads, length, head_dim]."""

    name = "attention"
    doc = "scaled dot-product attention, forward and (--gradients yes) backward"
    inputs: tuple[str, ...] = ("q", "k", "v", "mask", "dout")
    outputs: tuple[str, ...] = ("out", "lse", "dq", "dk", "dv")
    statistics: tuple[str, ...] = ("lse",)
    row_axes: ClassVar[Mapping[str, int]] = {"out": -2, "lse": -1, "dq": -2}
    cluster_dims = 2
    parameters: Mapping[str, Parameter] = PARAMETERS
    distributions: Mapping[str, str] = DISTRIBUTIONS

    @property
    def recipes(self) -> Registry[Recipe]:
        """The catalogue of attention recipes."""
        return RECIPES

    def settle(self, given: Mapping[str, Value]) -> dict[str, Value]:
        """All parameters in one spelling; lengths that equal their default are the default."""
        return settle(given)

    def draw(self, parameters: Mapping[str, Value], format: Format, seed: int) -> Problem:
        """Draw Q, K, V (a mask, dO) in float64, and round each once to `format`.

        Where rows are sampled, dO is zero outside them.
        """
        drawn = distributions.draw(parameters, seed)
        inputs = {name: stored(x, format) for name, x in drawn.items()}
        wanted = cast("int | None", parameters["rows"])
        rows = sampled_rows(wanted, inputs["q"].shape[-2], seed)
        if rows is not None and "dout" in inputs:
            dout = torch.zeros_like(inputs["dout"])
            dout[:, :, rows] = inputs["dout"][:, :, rows]
            inputs["dout"] = dout
        return Problem(inputs, format, parameters, rows)

    def golden(self, problem: Problem) -> tuple[Outputs, dict[str, float]]:
        """Output and LSE in float64 at the problem's rows, and the condition; dQ, dK, dV too.

        The condition is that of `golden`, and `tied`, the share of rows with a tied maximum.
        """
        call = call_of(problem)
        result, condition = golden.golden(call)
        condition |= {"tied": tied_share(call, problem.format)}
        outputs = {"out": result.out, "lse": result.lse}
        if "dout" in problem.inputs:
            outputs |= _named(golden_gradients(call, _dout(problem, call)))
        return outputs, condition

    def run(self, recipe: Recipe, problem: Problem) -> tuple[Outputs, dict[str, float]]:
        """What `recipe` gives at the problem's rows, and how often a row rescaled.

        Raises `UnsupportedError` where gradients are asked of a recipe without `backward`.
        """
        call = call_of(problem)
        recipe = _tiled(recipe, problem.parameters, call)
        gradients: Outputs = {}
        if "dout" not in problem.inputs:
            result = attend(recipe.forward, call, problem.format)
        else:
            result, kept = attend_keeping(recipe, call, problem.format)
            dout = _dout(problem, call)
            gradients = _named(differentiate(recipe, call, kept, dout, problem.format))
        assert result.rescales is not None
        assert result.rescaled_by is not None
        probes = rescale_probes(result.rescales, result.rescaled_by)
        return {"out": result.out, "lse": result.lse} | gradients, probes

    def precise(self, problem: Problem) -> tuple[Problem, Outputs, Outputs]:
        """Golden with 50 digits, at the first rows of the problem that a second allows."""
        call = call_of(problem)
        row = call.k.shape[-2] * (call.q.shape[-1] + call.v.shape[-1]) * math.prod(call.q.shape[:2])
        rows = call.rows[:: max(1, math.ceil(len(call.rows) * row / PRECISE_PRODUCTS))]
        high, low = golden.precise(replace(call, rows=rows))
        fewer = replace(problem, rows=rows)
        return fewer, {"out": high.out, "lse": high.lse}, {"out": low.out, "lse": low.lse}

    def questions(self, format: Format) -> tuple[Question, ...]:
        """The space that `explain` searches."""
        return questions(format)

    def probes(self, format: Format, seed: int) -> tuple[Probe, ...]:
        """Inputs that show one site each, whatever the order of sums."""
        return probes(format, seed)

    def natural(self) -> tuple[Mapping[str, Value], ...]:
        """A few hundred keys, first an odd number of them."""
        return tuple({"seq_len": n, "head_dim": d} for d in (64, 128, 32, 16) for n in (515, 512))

    def settled(self, recipe: Recipe, problem: Problem) -> Recipe:
        """The recipe for one problem: storage format and tile put in."""
        call = call_of(problem)
        return recipe.resolved(problem.format, head_dim=call.q.shape[-1], causal=call.mask.causal)

    def cost(self, parameters: Mapping[str, Value]) -> float:
        """Operations of the two products of one call; of five more where it has gradients."""
        heads, _, n, m, d, dv = lengths(parameters)
        inner = d + dv
        if parameters["gradients"] == "yes":
            inner += 3 * d + 2 * dv
        return 2.0 * cast(int, parameters["batch"]) * heads * n * m * inner

    def content(self, parameters: Mapping[str, Value]) -> Mapping[str, str]:
        """The digest of the file that the inputs come from."""
        return distributions.content(parameters)


def call_of(problem: Problem) -> Call:
    """The problem as one call of attention."""
    q, k, v = (problem.inputs[name] for name in "qkv")
    mask = make_mask(str(problem.parameters["mask"]), problem.inputs.get("mask"))
    given = problem.parameters["scale"]
    scale = q.shape[-1] ** -0.5 if given is None else float(given)
    rows = torch.arange(q.shape[-2], device=q.device) if problem.rows is None else problem.rows
    return Call(q, k, v, mask, scale, rows)


def _dout(problem: Problem, call: Call) -> torch.Tensor:
    return problem.inputs["dout"][:, :, call.rows]


def _named(gradients: Gradients) -> Outputs:
    return {"dq": gradients.dq, "dk": gradients.dk, "dv": gradients.dv}


def _tiled(recipe: Recipe, parameters: Mapping[str, Value], call: Call) -> Recipe:
    """The recipe with the tile that the cell asks for instead of its own."""
    asked = {
        field: parameters[name]
        for field, name in (("keys", "tile"), ("queries", "q_tile"))
        if parameters.get(name) is not None
    }
    if not asked:
        return recipe
    tile = recipe.tile
    if not isinstance(tile, Tile):
        tile = tile.tile(call.q.shape[-1], call.mask.causal)
    changes = cast(dict[str, Any], asked)
    how = recipe.backward
    if how is not None:
        behind = how.tile
        if not isinstance(behind, Tile):
            behind = behind.tile(call.q.shape[-1], call.lengths[0])
        how = replace(how, tile=replace(behind, **changes))
    return replace(recipe, tile=replace(tile, **changes), backward=how)


ATTENTION = Attention()
