"""The recipes of softmax by name: one declaration each."""

from __future__ import annotations

from dataclasses import replace

from roundoff.formats import FORMATS, Format
from roundoff.operators.softmax.recipe import Normalise, Recipe
from roundoff.registry import Registry
from roundoff.sites import Accumulator, ByStorage, Exponential

__all__ = ["RECIPES"]

RECIPES: Registry[Recipe] = Registry("recipe")


def add(recipe: Recipe) -> Recipe:
    """Register `recipe` under its own name."""
    return RECIPES.add(recipe.name, recipe)


SAFE = add(Recipe(name="safe", doc="the whole row in fp32, one cast at the end"))
add(
    Recipe(
        name="torch",
        doc="torch.softmax along the last axis on a CPU with AVX-512",
        source="ATen/native/cpu/SoftMaxKernel.cpp, torch 2.13",
        known="run",
        exponential=Exponential(approximation=ByStorage("sleef_u10", "sleef_u10", "exact")),
        row_sum=Accumulator(order=ByStorage("lanes", "vector", "vector"), lanes=16),
        normalise=Normalise("reciprocal"),
    )
)
ONLINE = add(
    replace(SAFE, name="online", doc="fp32, in tiles of 128 with a running maximum", tile=128)
)


def _sum_in(format: Format) -> Recipe:
    return replace(
        ONLINE,
        name=f"sum16-{format.name}",
        doc=f"online, with the running sum kept in {format.name} between tiles",
        row_sum=Accumulator(format),
    )


add(_sum_in(FORMATS["bf16"]))
add(_sum_in(FORMATS["fp16"]))

BF16 = FORMATS["bf16"]
add(
    Recipe(
        name="all-bf16",
        doc="whole rows, every intermediate result stored in bf16",
        exponential=Exponential(argument=BF16, format=BF16),
        maximum=BF16,
        factor=BF16,
        row_sum=Accumulator(BF16),
        normalise=Normalise(format=BF16),
    )
)
