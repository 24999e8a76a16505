"""What `pack` writes as JSON, `unpack` reads back: values, types and bits."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roundoff.errors import UsageError
from roundoff.state.wire import pack, unpack

tensors = st.builds(
    lambda bits, dtype: torch.tensor(bits, dtype=torch.int64).view(torch.uint8).view(dtype),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.uint8]),
)
arrays = st.builds(
    lambda values, dtype: np.array(values, dtype=dtype),
    st.lists(st.integers(0, 200), max_size=3),
    st.sampled_from(["uint32", "int64", "float32", "bool"]),
)
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
keys = st.integers() | st.text() | st.sampled_from(["$tensor", "$", "a.b", "1"]) | st.booleans()
states = st.recursive(
    plain | tensors | arrays,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner),
    max_leaves=12,
)


def sent(value):
    found = {}
    packed = json.dumps(pack(value, found), allow_nan=False)
    return unpack(json.loads(packed), found)


def same(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        bits = [x.contiguous().view(torch.uint8) for x in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(
            type(k) is type(n) and same(a[k], b[n]) for k, n in zip(a, b, strict=True)
        )
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)  # NaN is NaN, and -0 is not 0


@given(states)
def test_what_is_sent_arrives(value):
    assert same(sent(value), value)


def test_paths_that_read_alike():
    value = {"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}, 1: torch.ones(2), "1": torch.ones(3)}
    assert same(sent(value), value)


def test_a_counter_is_one_again():
    assert sent(Counter({3: 2, 7: 1})) == Counter({3: 2, 7: 1})
    assert isinstance(sent(Counter()), Counter)


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", 1j, np.array(["text"])])
def test_what_is_no_plain_data_is_named(value):
    with pytest.raises(UsageError, match=r"^deep\.0"):
        pack({"deep": [value]}, {})
