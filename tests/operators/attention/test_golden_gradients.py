"""Golden gradients against torch's autograd in float64, and their laws."""

from dataclasses import replace

import pytest
import torch

from roundoff.operators.attention import golden_gradients as module
from roundoff.operators.attention.golden_gradients import golden_gradients

CASES = [
    {},
    {"mask": "causal"},
    {"mask": "boolean"},
    {"mask": "additive"},
    {"n": 9, "m": 21, "mask": "causal-lower-right"},
    {"heads": 4, "kv_heads": 2, "batch": 2},
    {"d": 8, "dv": 24, "scale": -0.7, "spread": 2.0},
    {"n": 1, "m": 7},
]


def upstream(call):
    shape = (*call.q.shape[:2], len(call.rows), call.v.shape[-1])
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_autograd(call, dout):
    """The textbook's attention in float64, and torch's derivatives of it."""
    q, k, v = (x.double().requires_grad_() for x in (call.q, call.k, call.v))
    keys, values = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    s = (q @ keys.transpose(-1, -2)) * call.scale
    rows = torch.arange(q.shape[-2])
    s = call.mask.apply(s, rows, slice(0, k.shape[-2]), call.lengths)
    empty = (s == float("-inf")).all(-1, keepdim=True)
    p = s.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    return torch.autograd.grad(p @ values, (q, k, v), dout)


def worst(found, true):
    pairs = zip((found.dq, found.dk, found.dv), true, strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_they_are_autograds(case, make_call):
    call = make_call(**case)
    dout = upstream(call)
    assert worst(golden_gradients(call, dout), by_autograd(call, dout)) < 1e-12


def test_blocks_of_rows_change_nothing(make_call, monkeypatch):
    call = make_call(n=30, mask="causal")
    dout = upstream(call)
    whole = golden_gradients(call, dout)
    monkeypatch.setattr(module, "BLOCK", 7 * 30 * 2)
    parts = golden_gradients(call, dout)
    assert worst(parts, (whole.dq, whole.dk, whole.dv)) < 1e-13


def test_sampled_rows_are_the_whole_with_an_upstream_gradient_of_zero_elsewhere(make_call):
    call = make_call(n=40, heads=4, kv_heads=2)
    rows = torch.tensor([3, 17, 39])
    dout = torch.zeros_like(upstream(call))
    dout[:, :, rows] = upstream(call)[:, :, rows]
    sampled = golden_gradients(replace(call, rows=rows), dout[:, :, rows])
    true = by_autograd(call, dout)
    assert worst(sampled, (true[0][:, :, rows], *true[1:])) < 1e-12


def test_a_row_that_sees_nothing_has_no_gradient(make_call):
    call = make_call(mask="boolean")
    dout = upstream(call)
    found = golden_gradients(call, dout)
    assert (found.dq[:, :, 12] == 0).all()
    dout[:, :, 12] = 1e6
    again = golden_gradients(call, dout)
    assert torch.equal(found.dk, again.dk)
    assert torch.equal(found.dv, again.dv)


def test_nan_goes_through(make_call):
    call = make_call()
    dout = upstream(call)
    dout[0, 0, 5, 0] = torch.nan
    found = golden_gradients(call, dout)
    assert found.dq[0, 0, 5].isnan().all()
    assert found.dk[0, 0].isnan().all()
    assert found.dv[0, 0, :, 0].isnan().all()
    assert not found.dv[0, 0, :, 1:].isnan().any()
    assert not found.dq[0, 1].isnan().any()
