"""Masks: what is hidden, computed a block at a time, spelled in one way."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roundoff.errors import UsageError
from roundoff.operators.attention.masks import make_mask
from roundoff.operators.attention.parameters import parse_mask

sizes = st.integers(1, 24)
kinds = st.sampled_from(["none", "causal", "causal-lower-right"]) | st.integers(1, 30).map(
    lambda w: f"window:{w}"
)


def sees(text, i, j, n, m):
    """Whether query i of n sees key j of m, by the words of the documentation."""
    kind, _, width = text.partition(":")
    last = i if kind == "causal" else i + m - n
    if kind == "none":
        return True
    return j <= last and (not width or j > last - int(width))


@given(kinds, sizes, sizes)
def test_every_pair_is_as_documented(text, n, m):
    mask = make_mask(text)
    rows = torch.arange(n)
    seen = mask.apply(torch.zeros(n, m), rows, slice(0, m), (n, m)) == 0
    assert seen.tolist() == [[sees(text, i, j, n, m) for j in range(m)] for i in range(n)]
    dense = mask.dense((n, m), rows.device)
    assert dense is None if text == "none" else torch.equal(dense, seen)


@given(kinds, sizes, sizes, st.data())
def test_a_tile_hides_something_where_it_has_a_hidden_pair(text, n, m, data):
    start, first = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, m - 1))
    rows, keys = torch.arange(start, n), slice(first, data.draw(st.integers(first + 1, m)))
    pairs = [(i, j) for i in range(start, n) for j in range(first, keys.stop)]
    expected = not all(sees(text, i, j, n, m) for i, j in pairs)
    mask = make_mask(text)
    assert mask.hides(rows, keys, (n, m)) == expected
    if text != "none":
        dense = make_mask("boolean", mask.dense((n, m), rows.device)[None, None])
        assert dense.hides(rows, keys, (n, m)) == expected


@given(kinds, sizes, sizes, st.data())
def test_blocks_are_parts_of_the_whole(text, n, m, data):
    mask = make_mask(text)
    s = torch.arange(float(n * m)).view(n, m)
    whole = mask.apply(s, torch.arange(n), slice(0, m), (n, m))
    rows = torch.tensor(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1))))
    begin = data.draw(st.integers(0, m - 1))
    keys = slice(begin, data.draw(st.integers(begin + 1, m)))
    assert torch.equal(mask.apply(s[rows][:, keys], rows, keys, (n, m)), whole[rows][:, keys])


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 1), (2, 3)])
def test_tensors_are_read_at_rows_and_keys(shape):
    s = torch.zeros(2, 3, 2, 4)
    seen = torch.rand((*shape, 6, 9)) < 0.5
    rows, keys = torch.tensor([1, 4]), slice(3, 7)
    hidden = make_mask("boolean", seen).apply(s, rows, keys, (6, 9)) == -math.inf
    assert torch.equal(~hidden, seen[..., rows, keys].expand(2, 3, 2, 4))
    bias = torch.randn(*shape, 6, 9).double()
    added = make_mask("additive", bias).apply(s, rows, keys, (6, 9))
    assert added.dtype == torch.float32
    assert torch.equal(added, bias[..., rows, keys].float().expand(2, 3, 2, 4))


@given(st.text(max_size=14))
def test_a_spelling_is_refused_or_stays_as_it_is(text):
    try:
        name = parse_mask(text)
    except ValueError:
        return
    assert parse_mask(name) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        *[
            "window",
            "window:",
            "window:0",
            "window:-1",
            "window:x",
            "window:<keys>",
            "causal:3",
            "Causal",
        ],
    ],
)
def test_bad_spellings(text):
    with pytest.raises(ValueError, match="expected one of none, causal"):
        parse_mask(text)


def test_a_tensor_goes_with_two_kinds_only():
    for text, tensor in (("causal", torch.ones(1, 1, 2, 2)), ("boolean", None)):
        with pytest.raises(UsageError, match="a mask tensor goes with"):
            make_mask(text, tensor)
