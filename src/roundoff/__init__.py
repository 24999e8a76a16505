"""roundoff: how far an optimization moves the numbers, where from, and whether it matters.

>>> import roundoff
>>> roundoff.get_format("bf16").eps
0.0078125
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from roundoff.registry import lazily

if TYPE_CHECKING:
    from roundoff.attribution.ablate import ablate
    from roundoff.attribution.ablation import Ablation
    from roundoff.attribution.explain import Explanation, explain
    from roundoff.bench.compare import Comparison, compare
    from roundoff.errors import RoundoffError
    from roundoff.formats import Format, get_format
    from roundoff.formats.rounding import round_to
    from roundoff.kernels.user import kernel
    from roundoff.live.monitor import Monitor
    from roundoff.live.watch import Watch
    from roundoff.metrics.wasserstein import wasserstein
    from roundoff.operators.attention.api import emulate, golden
    from roundoff.operators.attention.call import Attention
    from roundoff.operators.attention.recipe import Recipe
    from roundoff.store import Run
    from roundoff.training.shadow import shadow
    from roundoff.weights.diff import Diff, diff

__version__ = "0.1.0.dev0"

__all__ = [
    "Ablation",
    "Attention",
    "Comparison",
    "Diff",
    "Explanation",
    "Format",
    "Monitor",
    "Recipe",
    "RoundoffError",
    "Run",
    "Watch",
    "ablate",
    "compare",
    "diff",
    "emulate",
    "explain",
    "get_format",
    "golden",
    "kernel",
    "round_to",
    "shadow",
    "wasserstein",
]

_PLACES = {
    "Ablation": "attribution.ablation",
    "Attention": "operators.attention.call",
    "Comparison": "bench.compare",
    "Diff": "weights.diff",
    "Explanation": "attribution.explain",
    "Format": "formats",
    "Monitor": "live.monitor",
    "Recipe": "operators.attention.recipe",
    "RoundoffError": "errors",
    "Run": "store",
    "Watch": "live.watch",
    "ablate": "attribution.ablate",
    "compare": "bench.compare",
    "diff": "weights.diff",
    "emulate": "operators.attention.api",
    "explain": "attribution.explain",
    "get_format": "formats",
    "golden": "operators.attention.api",
    "kernel": "kernels.user",
    "round_to": "formats.rounding",
    "shadow": "training.shadow",
    "wasserstein": "metrics.wasserstein",
}


__getattr__, __dir__ = lazily(__name__, _PLACES, [*__all__, "__version__"])
