"""The low-precision-failure study."""

from __future__ import annotations

from roundoff.studies.low_precision_failure import plan
from roundoff.studies.low_precision_failure.claims import CLAIMS
from roundoff.studies.low_precision_failure.trained import TRAINED
from roundoff.studies.study import Files, Study

__all__ = ["STUDY"]

STUDY = Study(
    name="low-precision-failure",
    source="arXiv 2510.04212, at the scale of one operator call",
    doc="Where does flash attention in bf16 round one way, and what takes that away?",
    presets={"quick": plan.quick, "full": plan.full},
    claims=CLAIMS,
    files=Files(
        "inputs of the text model in training", plan.inputs, plan.trained, claims=(TRAINED,)
    ),
)
