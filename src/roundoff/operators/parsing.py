"""From the text of an option to a value, for the parameters of any operator. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

__all__ = ["distribution", "number", "positive"]


def positive(text: str) -> int:
    """A whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        raise ValueError("expected a whole number") from None
    if value < 1:
        raise ValueError("expected a whole number of at least 1")
    return value


def number(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        raise ValueError("expected a number") from None
    if not math.isfinite(value):
        raise ValueError("expected a finite number")
    return value


def distribution(text: str, known: Mapping[str, str], defaults: Mapping[str, float]) -> str:
    """Check the spelling of a distribution `kind[:number]`, and write its number in one way.

    `defaults` are the kinds that take a number, with the one that may be left out.

    >>> distribution("normal:1.0", {"normal": ""}, {"normal": 1.0})
    'normal'
    >>> distribution("normal:4.0", {"normal": ""}, {"normal": 1.0})
    'normal:4'
    """
    kind, _, rest = text.partition(":")
    if kind == "file" and "file:<path>" in known:
        if not rest:
            raise ValueError("expected file:<path of a .safetensors file>")
        return f"file:{Path(rest)}"
    if kind not in known:
        raise ValueError(f"expected one of {', '.join(known)}")
    if not rest:
        return kind
    if kind not in defaults:
        raise ValueError(f"{kind!r} takes no number")
    value = number(rest)
    return kind if value == defaults[kind] else f"{kind}:{_plain(value)}"


def _plain(value: float) -> str:
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
