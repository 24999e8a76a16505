"""The share of rows with a tied maximum, against rounding P itself and on rows that tie or not."""

import math

import pytest
import torch

from roundoff.formats import get_format, round_to
from roundoff.operators.attention import ties
from roundoff.operators.attention.call import Call
from roundoff.operators.attention.masks import make_mask
from roundoff.operators.attention.operator import ATTENTION
from roundoff.operators.attention.ties import tied_share

BF16 = get_format("bf16")


def share(problem, format):
    return ATTENTION.golden(problem)[1]["tied"], tied_share_of(problem, format)


def tied_share_of(problem, format):
    """Entries of P that are 1, from softmax's own definition."""
    q, k = problem.inputs["q"].double(), problem.inputs["k"].double()
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    s = q @ k.mT * q.shape[-1] ** -0.5
    n, m = s.shape[-2:]
    if problem.parameters["mask"] == "causal":
        s = s.masked_fill(torch.ones(n, m).triu(1).bool(), -math.inf)
    p = round_to((s - s.amax(-1, keepdim=True)).exp(), format)
    return ((p == 1).sum(-1) > 1).double().mean().item()


@pytest.mark.parametrize("format", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("mask", ["none", "causal"])
@pytest.mark.parametrize("inputs", ["normal:0.2", "normal", "tied", "tied-peak"])
def test_is_the_share_of_rows_with_two_weights_of_1(format, mask, inputs):
    given = {"seq_len": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "mask": mask,
             "inputs": inputs}  # fmt: skip
    problem = ATTENTION.draw(ATTENTION.settle(given), get_format(format), 0)
    found, expected = share(problem, get_format(format))
    assert found == expected


def test_constructed_ties_and_none():
    for inputs, expected in (("tied-peak", 1.0), ("tied-peak:1", 0.0)):
        given = {"seq_len": 300, "heads": 2, "inputs": inputs}
        problem = ATTENTION.draw(ATTENTION.settle(given), BF16, 0)
        assert ATTENTION.golden(problem)[1]["tied"] == expected


@pytest.mark.parametrize(("gap", "tied"), [(2.0**-9, 1.0), (1.01 * 2.0**-9, 0.0)])
def test_the_edge_rounds_to_even(gap, tied):
    q = torch.ones(1, 1, 1, 1)
    k = torch.tensor([0.0, math.log1p(-gap), -5.0], dtype=torch.float64).view(1, 1, 3, 1)
    assert tied_share(Call(q.double(), k, k, make_mask("none"), 1.0, torch.arange(1)), BF16) == tied


def test_parts_change_nothing(monkeypatch):
    given = {"seq_len": 50, "heads": 2, "inputs": "normal:0.2", "mask": "additive"}
    problem = ATTENTION.draw(ATTENTION.settle(given), BF16, 0)
    whole = ATTENTION.golden(problem)[1]["tied"]
    monkeypatch.setattr(ties, "KEYS", 7)
    assert 0 < whole < 1
    assert ATTENTION.golden(problem)[1]["tied"] == whole


def test_rows_that_see_nothing_do_not_count():
    x = torch.zeros(1, 1, 4, 2)
    hidden = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1]]).bool()
    call = Call(x, x, x, make_mask("boolean", hidden[None, None]), 1.0, torch.arange(4))
    assert tied_share(call, BF16) == pytest.approx(2 / 3)
    nothing = Call(x, x, x, make_mask("boolean", hidden[None, None] & False), 1.0, torch.arange(4))
    assert math.isnan(tied_share(nothing, BF16))
    assert math.isnan(tied_share(Call(x, x[:, :, :0], x, make_mask("none"), 1.0, torch.arange(4)),
                                 BF16))  # fmt: skip
    assert math.isnan(tied_share(Call(x * math.nan, x, x, make_mask("none"), 1.0, torch.arange(4)),
                                 BF16))  # fmt: skip
