"""Strict JSON: every number comes back, and nothing else gets through."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roundoff.errors import UsageError
from roundoff.store.json import canonical, digest, dumps, loads

TEXTS = st.text().filter(lambda text: text not in ("nan", "inf", "-inf"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def same(a, b):
    """Equal in type and in every bit that a float shows, -0.0 and NaN included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)


@given(VALUES)
def test_round_trip(value):
    assert same(loads(dumps(value)), value)


@given(VALUES)
def test_any_parser_reads_it(value):
    def refuse(name):
        raise AssertionError(name)

    text = dumps(value)
    json.loads(text, parse_constant=refuse)
    assert "\n" not in text
    assert text.isascii()


@given(VALUES)
def test_canonical_is_a_fixed_point(value):
    text = canonical(value)
    assert canonical(loads(text)) == text


@given(st.dictionaries(st.text(), st.integers() | TEXTS))
def test_canonical_ignores_order(mapping):
    assert canonical(mapping) == canonical(dict(reversed(mapping.items())))


@given(st.integers(-(2**53), 2**53))
def test_canonical_takes_a_whole_float_for_an_integer(number):
    assert canonical(float(number)) == canonical(number)


@pytest.mark.parametrize(
    ("a", "b"), [(0.0, -0.0), (1, True), (1, "1"), (0, None), (1, 1.5), (math.inf, -math.inf)]
)
def test_what_differs_has_another_digest(a, b):
    assert digest(a) != digest(b)


def test_the_three_words_mean_numbers():
    assert math.isnan(loads(dumps({"x": "nan"}))["x"])
    assert loads(dumps(["inf", "-inf", "nan "])) == [math.inf, -math.inf, "nan "]
    assert list(loads(dumps({"nan": 1}))) == ["nan"]


def test_a_numpy_float_is_a_float():
    assert dumps(np.float64(0.1)) == "0.1"


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({1, 2}, r"set, at \$;"),
        ({"out": [0, np.float32(1)]}, r"float32, at \$.out\[1\]"),
        ({"out": {3: 1}}, r"not 3, at \$.out"),
        (b"x", "bytes"),
        (1j, "complex"),
    ],
)
def test_what_json_cannot_hold_is_refused(value, place):
    for write in (dumps, canonical):
        with pytest.raises(UsageError, match=place):
            write(value)


@pytest.mark.parametrize(
    "text",
    ["NaN", "[Infinity]", '{"a": 1, "a": 2}', "{]", "", "1 2", b"\xff", "[" * 100_000, "1" * 5000],
)
def test_what_is_not_strict_json_is_refused(text):
    with pytest.raises(UsageError, match="not strict JSON"):
        loads(text)
