"""Strict JSON: what roundoff writes can be read by any parser, and no number is lost.

NaN and the infinities, which JSON lacks, travel as the strings "nan", "inf" and
"-inf". `canonical` is the one spelling of a value that identities are hashed from.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, cast

from roundoff.errors import UsageError

__all__ = ["canonical", "digest", "dumps", "loads"]

_WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_QUOTED_WORDS = tuple(f'"{word}"' for word in _WORDS)


def dumps(value: object) -> str:
    """`value` as one line of strict JSON.

    Takes None, bool, int, float, str, mappings with string keys, lists and tuples
    (a tuple is read back as a list). NaN and the infinities become the strings
    "nan", "inf" and "-inf"; -0.0 stays -0.0. These three strings, as values, always
    mean numbers: a text that is exactly one of them is read back as a float.
    Anything else (a tensor, an int as a key, a set) is a `UsageError` that names
    its place: nothing is turned into text on the quiet.

    >>> dumps({"rmse": float("nan"), "n": 3})
    '{"rmse": "nan", "n": 3}'
    >>> dumps({"out": {3, 4}})
    Traceback (most recent call last):
    ...
    roundoff.errors.UsageError: JSON cannot hold a set, at $.out; ...
    """
    return json.dumps(_encode(value, "$", _spell), allow_nan=False)


def loads(text: str | bytes) -> Any:
    """The value of one strict JSON document, with "nan", "inf" and "-inf" as floats.

    A bare NaN or Infinity, a key that occurs twice, and anything else that is not
    JSON is a `UsageError`.

    >>> loads('{"rmse": "nan", "n": 3}')
    {'rmse': nan, 'n': 3}
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
        return _decode(value) if any(word in text for word in _QUOTED_WORDS) else value
    except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
        raise UsageError(f"not strict JSON: {error}") from None


def canonical(value: object) -> str:
    """The one spelling of `value`: sorted keys, no spaces, whole floats as integers.

    Two values that are equal as data have one spelling: 1 and 1.0, a tuple and a list,
    mappings in any order. -0.0 is kept apart from 0, as numerics may differ by it.

    >>> canonical({"scale": 1.0, "format": "bf16"})
    '{"format":"bf16","scale":1}'
    """
    tree = _encode(value, "$", lambda number: _spell(_whole(number)))
    return json.dumps(tree, allow_nan=False, sort_keys=True, separators=(",", ":"))


def digest(value: object) -> str:
    """The first 16 hex digits of the SHA-256 of `canonical(value)`.

    >>> digest({"scale": 1}) == digest({"scale": 1.0})
    True
    """
    return hashlib.sha256(canonical(value).encode("ascii")).hexdigest()[:16]


def _spell(number: float) -> float | str:
    """`number`, or the word for it where JSON has no number."""
    if math.isfinite(number):
        return number
    return "nan" if math.isnan(number) else "inf" if number > 0 else "-inf"


def _whole(number: float) -> float:
    negative_zero = number == 0 and math.copysign(1, number) < 0
    return int(number) if number.is_integer() and not negative_zero else number


def _encode(value: object, place: str, spell: Callable[[float], float | str]) -> object:
    """`value` as what `json` knows, floats by `spell`; `place` is for the message."""
    if isinstance(value, float):
        return spell(float(value))
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        pairs = cast("Mapping[object, object]", value).items()
        return {_key(k, place): _encode(v, f"{place}.{k}", spell) for k, v in pairs}
    if isinstance(value, list | tuple):
        items = cast("list[object]", value)
        return [_encode(v, f"{place}[{i}]", spell) for i, v in enumerate(items)]
    raise UsageError(
        f"JSON cannot hold a {type(value).__qualname__}, at {place}; expected None, bool, "
        f"int, float, str, a mapping or a list (for a tensor or array: .item() or .tolist())"
    )


def _key(key: object, place: str) -> str:
    if isinstance(key, str):
        return key
    raise UsageError(f"a key of JSON must be a string, not {key!r}, at {place}")


def _decode(value: object) -> object:
    if isinstance(value, str):
        return _WORDS.get(value, value)
    if isinstance(value, list):
        return [_decode(v) for v in cast("list[object]", value)]
    if isinstance(value, dict):
        return {k: _decode(v) for k, v in cast("dict[str, object]", value).items()}
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f'a bare {name}; expected the string "nan", "inf" or "-inf"')


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} occurs twice")
    return result
