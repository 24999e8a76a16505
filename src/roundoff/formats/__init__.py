"""Number formats as values, and rounding to them.

Formats are free of torch; `round_to` and its kin import it when they are first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from roundoff.formats.catalogue import FORMATS, get_format
from roundoff.formats.format import Format
from roundoff.registry import lazily

if TYPE_CHECKING:
    from roundoff.formats.rounding import round_to
    from roundoff.formats.spacing import format_of, is_representable, to_dtype, ulp

__all__ = [
    "FORMATS",
    "Format",
    "format_of",
    "get_format",
    "is_representable",
    "round_to",
    "to_dtype",
    "ulp",
]

_PLACES = {
    "round_to": "rounding",
    "format_of": "spacing",
    "is_representable": "spacing",
    "to_dtype": "spacing",
    "ulp": "spacing",
}


__getattr__, __dir__ = lazily(__name__, _PLACES, __all__)
