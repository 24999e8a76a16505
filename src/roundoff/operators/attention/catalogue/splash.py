"""JAX's splash attention: a Pallas kernel for TPUs."""

from __future__ import annotations

from roundoff.operators.attention.catalogue.table import add
from roundoff.operators.attention.recipe import Logits, Normalise, Prescale, Recipe, Tile
from roundoff.sites import INPUT, OPMATH

__all__: list[str] = []

add(
    Recipe(
        name="jax-splash",
        doc="splash attention: Q scaled by its caller, P and V multiplied in fp32, tiles of 128",
        source="jax/experimental/pallas/ops/tpu/splash_attention, jax 0.10 (at full precision)",
        known="read",
        # A TPU's default precision takes both sides of that product in bf16.
        prescale=Prescale("q", INPUT),
        logits=Logits("before"),
        probabilities=OPMATH,
        normalise=Normalise("end", "reciprocal"),
        tile=Tile(128, 128),
    )
)
