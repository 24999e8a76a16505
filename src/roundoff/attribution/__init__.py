"""Where a deviation comes from: `explain` finds a kernel's recipe, over the sites of any operator.

witness.py  what a kernel gives on the probes
search.py   the recipe that gives the same bits
residue.py  what is left over on natural inputs, and the verdict
explain.py  the three together
emit.py     the explanation as files
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from roundoff.registry import lazily

if TYPE_CHECKING:
    from roundoff.attribution.emit import emit
    from roundoff.attribution.explain import Explanation, SiteFinding, explain, explain_kernel

__all__ = ["Explanation", "SiteFinding", "emit", "explain", "explain_kernel"]

_PLACES = {
    "Explanation": "explain",
    "SiteFinding": "explain",
    "emit": "emit",
    "explain": "explain",
    "explain_kernel": "explain",
}

__getattr__, __dir__ = lazily(__name__, _PLACES, __all__)
