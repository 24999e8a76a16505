"""Where the numbers stand that the fast path hands to its compiled loops.

`fused` and `fused_backward` fill `plans`, a row for each place that rounds, and `settings`, which
say what the steps do and with which numbers; the loops read both. Nothing is imported here.
"""

from __future__ import annotations

QK, SCORES, LOGITS, ARGUMENT, EXP, WEIGHTS, MAXIMUM, FACTOR, ADDED, SUM, PRODUCT, OUT = range(12)
"""Rows of `plans`."""

DP, DIFFERENCE, DS, SCALED_DS = range(12, 16)
"""Rows of a backward pass beyond these."""

BY_DROPPING, IN_FULL = 1, 2
"""How a plan rounds, its first number; 0: not at all."""

SCALE, WAITING, EXPONENT, UNIT, THRESHOLD, QUANTUM = range(6)
"""Entries of `settings` that are numbers."""

SCALED, SUBTRACT, TIMES_LOG2_E, BASE_2, AFTER, LAZY, QUANTIZED = range(6, 13)
"""Entries that say what the steps do."""

PLAIN, BY_FMA, TIMES = range(3)
"""What may stand at `SUBTRACT`: S - m, one multiply-add, or the difference times the scale."""

FACTOR_OF_DS, ONTO_DS = 13, 14
"""Entries of a backward pass: the scale, and whether it goes onto dS."""
