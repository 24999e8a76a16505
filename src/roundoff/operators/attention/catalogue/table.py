"""The table that every row of the catalogue is put into."""

from __future__ import annotations

from roundoff.operators.attention.recipe import Recipe
from roundoff.registry import Registry

__all__ = ["RECIPES", "add"]

RECIPES: Registry[Recipe] = Registry("recipe")


def add(recipe: Recipe) -> Recipe:
    """Register `recipe` under its own name."""
    return RECIPES.add(recipe.name, recipe)
