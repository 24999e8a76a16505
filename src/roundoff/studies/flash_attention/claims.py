"""The claims of the flash-attention study: what is said, by whom, and the predicate for it."""

from __future__ import annotations

from roundoff.studies.flash_attention import fa3, paper
from roundoff.studies.study import Claim

__all__ = ["CLAIMS"]

CLAIMS = (
    Claim("C1", "At bf16, flash deviates from golden about 10x more than the baseline",
          "about 10x, max error", paper.c1),
    Claim("C2", "Deviation falls as mantissa bits rise", "monotone from bf16 to fp64", paper.c2),
    Claim("C3", "Deviation grows with sequence length at a fixed tile", "more rescales", paper.c3),
    Claim("C4", "Larger tiles deviate less", "fewer rescales", paper.c4),
    Claim("C5", "Swapping the order of the block's sides deviates more", "larger", paper.c5),
    Claim("C6", "Square tiles have no effect", "no effect", paper.c6),
    Claim("FA3-16", "In fp16 with outliers, flash is more accurate than standard attention",
          "1.7x: 3.2e-4 against 1.9e-4 rmse", fa3.fp16),
    Claim("FA3-8", "In FP8, block scales and rotated Q, K are more accurate than a scale a tensor",
          "2.6x: 2.4e-2 against 9.1e-3 rmse", fa3.fp8),
    Claim("LAW", "All-bf16 flash over all-bf16 attention depends on the number of tiles alone",
          "ours, not the paper's", paper.law),
    Claim("CAUSE", "In a bf16 state, the sum or the output alone costs more than the maximum alone",
          "ours, not the paper's", paper.cause),
)  # fmt: skip
