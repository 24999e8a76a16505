"""The recipes by name: one declaration each, one file a family.

Names are shared with the kernels that the recipes describe. To add a family, add a file and
import it here.
"""

from __future__ import annotations

from roundoff.operators.attention.catalogue import (
    efficient,
    flash,
    flex,
    fp8,
    jax,
    low_precision,
    microscaling,
    onnx,
    paper,
    sage,
    splash,
    torch,
    triton,
)
from roundoff.operators.attention.catalogue.paper import all_in, tiled_in
from roundoff.operators.attention.catalogue.table import RECIPES

__all__ = [
    "RECIPES",
    "all_in",
    "efficient",
    "flash",
    "flex",
    "fp8",
    "jax",
    "low_precision",
    "microscaling",
    "onnx",
    "paper",
    "sage",
    "splash",
    "tiled_in",
    "torch",
    "triton",
]
