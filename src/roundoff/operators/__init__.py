"""Operators: what is computed, apart from how. One folder each; `protocol` is the interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from roundoff.registry import Registry

if TYPE_CHECKING:
    from roundoff.operators.protocol import Operator

__all__ = ["OPERATORS"]

OPERATORS: Registry[Operator] = Registry("operator")
OPERATORS.add_place("attention", "roundoff.operators.attention.operator:ATTENTION")
OPERATORS.add_place("softmax", "roundoff.operators.softmax.operator:SOFTMAX")
