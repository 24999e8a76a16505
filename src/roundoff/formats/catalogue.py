"""The formats that roundoff knows by name, and the grammar of the others."""

from __future__ import annotations

import re

from roundoff.errors import UnknownNameError, UsageError
from roundoff.formats.format import Format, Specials
from roundoff.registry import Registry

__all__ = ["ALIASES", "FORMATS", "get_format"]

FORMATS: Registry[Format] = Registry("format")

for _row in (
    Format("fp64", 11, 52, 1023),
    Format("fp32", 8, 23, 127),
    Format("tf32", 8, 10, 127),
    Format("bf16", 8, 7, 127),
    Format("fp16", 5, 10, 15),
    Format("e4m3fn", 4, 3, 7, "fn"),
    Format("e5m2", 5, 2, 15),
    Format("e4m3fnuz", 4, 3, 8, "fnuz"),
    Format("e5m2fnuz", 5, 2, 16, "fnuz"),
    Format("e2m3", 2, 3, 1, "none"),
    Format("e3m2", 3, 2, 3, "none"),
    Format("e2m1", 2, 1, 1, "none"),
):
    FORMATS.add(_row.name, _row)

ALIASES: dict[str, str] = {
    "float64": "fp64",
    "float32": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
    "float8_e4m3fn": "e4m3fn",
    "float8_e5m2": "e5m2",
    "float8_e4m3fnuz": "e4m3fnuz",
    "float8_e5m2fnuz": "e5m2fnuz",
}

_GRAMMAR = re.compile(r"e(\d{1,3})m(\d{1,3})(?:b(-?\d{1,4}))?(fn|fnuz)?")


def get_format(format: str | Format) -> Format:
    """The format of a name; a `Format` comes back as it is.

    A name is one of `FORMATS`, one of torch's (`"bfloat16"`), or is spelled
    `e<exponent bits>m<mantissa bits>[b<bias>][fn|fnuz]`. Without a suffix the format is like
    IEEE's: infinities, and NaN in the rest of the top exponent. So `"e4m3"` ends at 240;
    the 8-bit format that ends at 448 is `"e4m3fn"`. The bias is `2**(e-1) - 1`, and
    `2**(e-1)` for fnuz, unless it is given. The catalogue comes first: `"e2m1"`, `"e2m3"` and
    `"e3m2"` are OCP's, in which every code is finite.

    Raises `UnknownNameError` for a name that is none of these, and `UsageError` for a format
    that cannot exist or that float64 cannot hold.

    >>> get_format("bfloat16").name
    'bf16'
    >>> get_format("e5m7").max
    65280.0
    >>> get_format("e4m3b11fnuz").max
    30.0
    """
    if isinstance(format, Format):
        return format
    if not isinstance(format, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"a format is a name or a Format, not {format!r}")
    name = ALIASES.get(format, format)
    if name in FORMATS:
        return FORMATS[name]
    return _parse(name)


def _parse(name: str) -> Format:
    match = _GRAMMAR.fullmatch(name)
    if match is None:
        raise UnknownNameError("format", name, [*FORMATS, *ALIASES])
    exponent, mantissa = int(match[1]), int(match[2])
    specials: Specials = {"fn": "fn", "fnuz": "fnuz"}.get(match[4], "ieee")  # type: ignore[assignment]
    # A negative shift would hide the better message for 0 exponent bits.
    usual = (1 << max(exponent, 1) - 1) - (specials != "fnuz")
    return Format(name, exponent, mantissa, int(match[3]) if match[3] else usual, specials)
