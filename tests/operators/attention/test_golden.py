"""Golden against mpmath, against a plain loop in Python, and against its own samples."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from roundoff.operators.attention.golden import golden, precise

MASKS = ["none", "causal", "causal-lower-right", "window:5", "boolean", "additive"]


def weight(call):
    """sum p|v|, in whose units golden's error is bounded."""
    return golden(replace(call, v=call.v.abs()))[0].out


def naive(call):
    """Attention by loops over Python floats; math.fsum adds exactly."""
    groups = call.q.shape[1] // call.k.shape[1]
    seen = call.mask.dense(call.lengths, torch.device("cpu"))
    added = torch.zeros(1, *call.lengths) if seen is None else seen.reshape(-1, *call.lengths)
    if added.dtype == torch.bool:
        added = torch.zeros(added.shape).masked_fill(~added, -math.inf)
    out = torch.zeros(*call.q.shape[:2], len(call.rows), call.v.shape[-1], dtype=torch.float64)
    lse = torch.full(out.shape[:-1], -math.inf, dtype=torch.float64)
    for b, h, i in itertools.product(*map(range, out.shape[:3])):
        row = int(call.rows[i])
        q = call.q[b, h, row].tolist()
        logits, values = [], []
        for j in range(call.k.shape[2]):
            extra = added[min(h, added.shape[0] - 1), row, j].item()
            if extra == -math.inf:
                continue
            key = call.k[b, h // groups, j].tolist()
            s = math.fsum(x * y for x, y in zip(q, key, strict=True)) * call.scale + extra
            logits.append(s)
            values.append(call.v[b, h // groups, j].tolist())
        if not logits:
            continue
        m = max(logits)
        p = [math.exp(s - m) for s in logits]
        total = math.fsum(p)
        columns = zip(*values, strict=True)
        means = [math.fsum(x * y for x, y in zip(p, c, strict=True)) / total for c in columns]
        out[b, h, i] = torch.tensor(means, dtype=torch.float64)
        lse[b, h, i] = m + math.log(total)
    return out, lse


CASES = [{"mask": m} for m in MASKS] + [
    {"heads": 4, "kv_heads": 2},
    {"heads": 2, "kv_heads": 1, "mask": "causal"},
    {"n": 9, "m": 31, "mask": "causal"},
    {"n": 31, "m": 9, "mask": "causal-lower-right"},
    {"n": 9, "m": 31, "mask": "window:4"},
    {"d": 5, "dv": 7},
    {"scale": 1.0},
    {"scale": -0.3},
    {"scale": 0.0},
    {"spread": 3.0},
    {"format": "fp64"},
    {"batch": 2, "n": 6},
    {"n": 1, "m": 1},
    {"rows": [3, 17]},
]


def error(ours, exact, unit):
    both = ours == exact  # -inf is -inf
    return ((ours - exact).abs() / unit).masked_fill(both, 0.0).max().item()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_golden_is_exact_to_1e_14(case, make_call):
    call = make_call(**{"n": 20} | case)
    result, _ = golden(call)
    unit = weight(call).clamp_min(1e-300)
    out, lse = naive(call)
    assert error(result.out, out, unit) <= 1e-14
    assert error(result.lse, lse, lse.abs().clamp(1.0, 1e300)) <= 1e-14
    high, low = precise(call)
    assert error(result.out - low.out, high.out, unit) <= 1e-14
    assert ((high.out + low.out) - high.out).abs().max() <= 1e-15 * unit.max()


def test_mpmath_and_float64_differ_by_the_remainder(make_call):
    call = make_call(n=6, rows=[0])
    high, low = precise(call)
    again, _ = precise(call, digits=80)
    assert torch.equal(high.out, again.out)
    assert (low.out != 0).any()
    assert (low.out.abs() <= high.out.abs() * 2**-53 * (1 + 1e-12)).all()


@pytest.mark.parametrize("mask", MASKS)
def test_sampled_rows_are_the_rows_of_the_whole(mask, make_call):
    whole, _ = golden(make_call(n=40, mask=mask))
    rows = [0, 7, 20, 39]
    some, _ = golden(make_call(n=40, mask=mask, rows=rows))
    assert (some.out - whole.out[..., rows, :]).abs().max() < 1e-15
    assert torch.equal(some.lse.isinf(), whole.lse[..., rows].isinf())


@pytest.mark.parametrize("mask", ["boolean", "additive"])
def test_a_row_that_sees_nothing_gives_zero(mask, make_call):
    call = make_call(n=10, mask=mask)
    for result in (golden(call)[0], precise(call)[0]):
        assert (result.out[..., 5, :] == 0).all()
        assert (result.lse[..., 5] == -math.inf).all()
        assert result.out.isfinite().all()


def test_blocks_of_rows_change_nothing(make_call, monkeypatch):
    from roundoff.operators.attention import golden as module

    call = make_call(n=37)
    whole, condition = golden(call)
    monkeypatch.setattr(module, "MOST_ROWS", 5)
    monkeypatch.setattr(module, "HELD", 1)
    blocks, again = golden(call)
    assert (blocks.out - whole.out).abs().max() < 1e-15
    assert again == pytest.approx(condition)


def test_no_keys_and_no_rows():
    from roundoff.operators.attention.call import Call
    from roundoff.operators.attention.masks import Mask

    none = torch.zeros(1, 2, 0, 4)
    some = torch.randn(1, 2, 3, 4)
    result, condition = golden(Call(some, none, none, Mask(), 1.0, torch.arange(3)))
    assert (result.out == 0).all()
    assert (result.lse == -math.inf).all()
    assert condition["logit_max"] == 0.0
    result, _ = golden(Call(none, some, some, Mask(), 1.0, torch.arange(0)))
    assert result.out.shape == (1, 2, 0, 4)


def test_the_condition_is_what_it_says(make_call):
    call = make_call(n=12, mask="causal", format="fp64")
    result, condition = golden(call)
    s = (call.q @ call.k.transpose(-1, -2)) * call.scale
    seen = torch.ones(12, 12, dtype=torch.bool).tril()
    visible = s[..., seen]
    assert condition["logit_max"] == pytest.approx(visible.abs().max().item())
    high = s.masked_fill(~seen, -math.inf).amax(-1)
    low = s.masked_fill(~seen, math.inf).amin(-1)
    assert condition["logit_range"] == pytest.approx((high - low).max().item())
    ratio = weight(call).square().mean().sqrt() / result.out.square().mean().sqrt()
    assert condition["cancellation"] == pytest.approx(ratio.item())
    assert condition["cancellation"] >= 1.0


@pytest.mark.parametrize("tensor", ["q", "k", "v"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_are_not_dropped(tensor, value, make_call):
    call = make_call(n=8)
    getattr(call, tensor)[0, 0, 3, 2] = value
    out = golden(call)[0].out
    assert not out[0, 0, 3].isfinite().all()
    assert out[0, 1].isfinite().all()


@pytest.mark.parametrize("mask", MASKS)
def test_large_logits_and_no_compiled_loops(mask, make_call, monkeypatch):
    """Beyond 2^900 the maximum is found first; the loops of torch give the same to 1e-14."""
    from roundoff.operators.attention import golden as module

    small, large = make_call(n=40, mask=mask), make_call(n=40, mask=mask, spread=30.0)
    fast = [golden(call)[0] for call in (small, large)]
    assert error(fast[1].out, naive(large)[0], weight(large).clamp_min(1e-300)) <= 4e-13
    assert error(fast[1].lse, naive(large)[1], large.q.square().sum(-1).amax()) <= 1e-14
    monkeypatch.setattr(module, "_loops", lambda: None)
    for call, result in zip((small, large), fast, strict=True):
        again = golden(call)[0]
        assert error(again.out, result.out, weight(call).clamp_min(1e-300)) <= 1e-14
        assert error(again.lse, result.lse, result.lse.abs().clamp(1.0, 1e300)) <= 1e-14


def test_the_condition_may_be_left_out(make_call):
    call = make_call(n=40, mask="causal")
    with_it, without = golden(call)[0], golden(call, condition=False)
    assert without[1] == {}
    assert (with_it.out - without[0].out).abs().max() < 1e-15
    assert torch.equal(with_it.lse, without[0].lse)


def test_threads_change_nothing(make_call):
    """The sums of weights have one order; that inside the products of torch is not ours."""
    call = make_call(n=600, mask="causal")
    before = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(golden(call)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0].lse, found[1].lse)
    assert (found[0].out - found[1].out).abs().max() < 1e-15
