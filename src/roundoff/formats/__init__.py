"""Number formats as values, and rounding to them.

Formats are free of torch; `round_to` and its kin import it when they are first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from roundoff.formats.catalogue import FORMATS, get_format
from roundoff.formats.format import Format

if TYPE_CHECKING:
    from roundoff.formats.rounding import round_to
    from roundoff.formats.spacing import is_representable, to_dtype, ulp

__all__ = [
    "FORMATS",
    "Format",
    "get_format",
    "is_representable",
    "round_to",
    "to_dtype",
    "ulp",
]

_PLACES = {
    "round_to": "rounding",
    "is_representable": "spacing",
    "to_dtype": "spacing",
    "ulp": "spacing",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from roundoff.registry import load  # noqa: PLC0415 - keeps this namespace to its public names

    return load(f"{__name__}.{_PLACES[name]}:{name}")


def __dir__() -> list[str]:
    return __all__
