"""Problems for kernels, and a kernel beside the recipe of its name."""

import dataclasses

import pytest
import torch

from roundoff.formats import get_format
from roundoff.kernels import KERNELS
from roundoff.operators import OPERATORS
from roundoff.operators.protocol import normalise

ATTENTION = OPERATORS["attention"]


def draw_attention(format="bf16", **given):
    parameters = normalise(ATTENTION.parameters, {"heads": 2, "head_dim": 32} | given)
    return ATTENTION.draw(parameters, get_format(format), 0)


@pytest.fixture
def draw():
    return draw_attention


@pytest.fixture
def with_inputs():
    """A problem with other tensors in it."""

    def change(problem, **tensors):
        return dataclasses.replace(problem, inputs=dict(problem.inputs) | tensors)

    return change


@pytest.fixture
def share():
    """The share of equal bits: +0 is not -0."""

    def of(a, b):
        bits = [x.double().view(torch.int64) for x in (a, b)]
        return (bits[0] == bits[1]).double().mean().item()

    return of


@pytest.fixture
def match(share):
    """How many bits a kernel shares with the recipe of its name, with changes to it."""

    def of(name, problem, **changes):
        kernel = KERNELS[name]
        assert kernel.refuses(problem) is None
        recipe = dataclasses.replace(ATTENTION.recipes[name], **changes)
        return share(kernel.run(problem)["out"], ATTENTION.run(recipe, problem)[0]["out"])

    return of
