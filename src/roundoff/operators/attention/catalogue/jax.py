"""What JAX's attention compiles to."""

from __future__ import annotations

from roundoff.operators.attention.catalogue.table import add
from roundoff.operators.attention.recipe import Normalise, Recipe
from roundoff.sites import INPUT, Accumulator

__all__: list[str] = []

add(
    Recipe(
        name="jax-xla",
        doc="jax.nn.dot_product_attention on XLA: fp32 softmax, normalised P cast to the input",
        source="jax/_src/nn/functions.py, jax 0.10",
        known="read",
        normalise=Normalise("block"),
        pv=Accumulator(INPUT),
    )
)
