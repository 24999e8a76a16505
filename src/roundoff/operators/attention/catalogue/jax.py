"""What JAX's attention compiles to."""

from __future__ import annotations

from roundoff.operators.attention.backward_recipe import Backward, Scaled
from roundoff.operators.attention.catalogue.table import add
from roundoff.operators.attention.recipe import Normalise, Recipe
from roundoff.sites import INPUT, OPMATH, Accumulator

__all__: list[str] = []

# What remains: the exponential of YNNPACK (SLEEF's is the nearest known: 97-99 % of its bits on
# rows of 16 and 64 keys), and the orders of its row sums and products.
add(
    Recipe(
        name="jax-xla",
        doc="jax.nn.dot_product_attention on XLA: fp32 softmax, P times 1/l cast to the input",
        source="jax/_src/nn/functions.py and the compiled program (XLA makes the division a "
        "multiplication by 1/l), jax 0.10.2 on a CPU",
        known="run",
        normalise=Normalise("block", "reciprocal"),
        pv=Accumulator(INPUT),
        # Derived automatically: dP is a product in the input's format, dS stays in fp32 up to its
        # own products. Beyond some length (768 tokens have it, 1025 do not) XLA leaves out the cast
        # of dP, which this recipe does not follow.
        backward=Backward(
            weights="kept",
            dp=Accumulator(INPUT),
            delta="weights",
            ds=OPMATH,
            scaled=Scaled("ds"),
            heads=OPMATH,
        ),
    )
)
