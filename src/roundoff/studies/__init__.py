"""Papers as data: a plan of measurements, and claims as predicates over the stored rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from roundoff.registry import Registry

if TYPE_CHECKING:
    from roundoff.studies.study import Study

__all__ = ["STUDIES"]

STUDIES: Registry[Study] = Registry("study")
STUDIES.add_place("flash-attention", "roundoff.studies.flash_attention.study:STUDY")
STUDIES.add_place("low-precision-failure", "roundoff.studies.low_precision_failure.study:STUDY")
STUDIES.add_place("recipes", "roundoff.studies.recipes:STUDY")
