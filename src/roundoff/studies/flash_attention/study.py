"""The flash-attention study."""

from __future__ import annotations

from roundoff.studies.flash_attention import plan, training, watched
from roundoff.studies.flash_attention.claims import CLAIMS
from roundoff.studies.study import Study

__all__ = ["STUDY"]

STUDY = Study(
    name="flash-attention",
    source="arXiv 2405.02803 (C1-C10), arXiv 2407.08608 Table 3 (FA3)",
    doc="Is Flash Attention stable? Which claims hold, on which kernels and formats?",
    presets={"quick": plan.quick, "full": plan.full, "gpu": plan.gpu},
    claims=CLAIMS,
    experiments=training.EXPERIMENTS,
    training_claims=training.CLAIMS,
    on_time=frozenset({"C10"}),
    watched=watched.WATCHED,
    watched_claims=watched.CLAIMS,
)
