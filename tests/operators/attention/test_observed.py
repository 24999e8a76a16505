"""What is seen of a call on sampled rows, held to torch in float64, scipy and the deviation."""

import math

import pytest
import torch
from scipy.special import logsumexp
from torch.nn import functional

from roundoff.formats import FORMATS
from roundoff.metrics.deviation import measure_deviation
from roundoff.operators.attention.backward import Gradients
from roundoff.operators.attention.call import Call
from roundoff.operators.attention.catalogue import RECIPES
from roundoff.operators.attention.masks import Mask
from roundoff.operators.attention.observed import ROW_PROBES, ObservedCall

H, HK, N, D = 4, 2, 24, 8
ROWS = torch.tensor([0, 3, 11, 23])
BF16 = FORMATS["bf16"]


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float()


def inputs():
    return drawn(1, H, N, D, seed=1), drawn(1, HK, N, D, seed=2), drawn(1, HK, N, D, seed=3)


def attention(q, k, v, mask=None, causal=False):
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=True
    )


def observed(mask="none", tensor=None, **more):
    q, k, v = inputs()
    call = Call(q, k, v, Mask(mask, tensor=tensor), D**-0.5, ROWS)
    out = attention(*(x.bfloat16() for x in (q, k, v)), tensor, mask == "causal")[:, :, ROWS]
    return ObservedCall(call, BF16, out, recipe=RECIPES["torch-cpu-flash"], **more)


def values(name, seen):
    probe = ROW_PROBES[name]
    return {k: v.tolist() for k, v in probe.values(probe.update(probe.init(), seen)).items()}


@pytest.mark.parametrize("mask", ["none", "causal", "boolean"])
def test_logits(mask):
    tensor = torch.rand(1, 1, N, N) > 0.3 if mask == "boolean" else None
    if tensor is not None:
        tensor[..., 3, :] = False  # a row that sees nothing
    q, k, _ = (x.double() for x in inputs())
    s = (q @ k.repeat_interleave(H // HK, 1).mT)[0] * D**-0.5
    hidden = {"causal": torch.ones(N, N).triu(1).bool()}.get(mask, torch.zeros(N, N).bool())
    hidden = hidden if tensor is None else ~tensor[0, 0]
    s = s.masked_fill(hidden, -math.inf)[:, ROWS]
    found = values("logits", observed(mask, tensor))
    lse = torch.from_numpy(logsumexp(s.numpy(), -1))
    assert found["logit_max"] == pytest.approx(s.amax((1, 2)).tolist())
    assert found["lse_max"] == pytest.approx(lse.amax(-1).tolist())
    sees = lse > -math.inf
    assert found["lse_min"] == pytest.approx(lse.masked_fill(~sees, math.inf).amin(-1).tolist())
    entropy = torch.distributions.Categorical(logits=s[:, sees[0]]).entropy().mean(-1)
    assert found["entropy"] == pytest.approx(entropy.tolist())
    ones = (s - s.amax(-1, keepdim=True)).exp().bfloat16() == 1
    assert found["tied"] == pytest.approx((ones.sum(-1) > 1)[:, sees[0]].double().mean(-1).tolist())
    visible = (s > -math.inf).sum((1, 2))
    assert found["at_one"] == pytest.approx((ones.sum((1, 2)) / visible).tolist())


def test_the_deviation_is_that_of_bench():
    seen = observed("causal")
    found = values("deviation", seen)
    golden = attention(*(x.double() for x in inputs()), causal=True)[:, :, ROWS]
    for head in range(H):
        d = measure_deviation(golden[0, head], seen.out[0, head], format="bf16", cluster_dims=0)
        assert found["rmse"][head] == pytest.approx(d.rmse)
        assert found["ulp"][head] == pytest.approx(d.ulp_mean)
        assert found["gain"][head] == pytest.approx(d.gain)
    assert found["ratio"] == pytest.approx([1.0] * H, rel=1e-3)  # the recipe is the kernel's


def test_gradients_of_autograd():
    dout = drawn(1, H, len(ROWS), D, seed=4)
    leaves = [x.bfloat16().requires_grad_() for x in inputs()]
    exact = [x.double().requires_grad_() for x in inputs()]
    for xs in (leaves, exact):
        out = attention(*xs, causal=True)
        upstream = torch.zeros_like(out)
        upstream[:, :, ROWS] = dout.to(out.dtype)
        out.backward(upstream)
    dq, dk, dv = (x.grad for x in leaves)
    seen = observed("causal", dout=dout, gradients=Gradients(dq[:, :, ROWS], dk, dv))
    found = values("gradients", seen)
    golden = [exact[0].grad[:, :, ROWS], exact[1].grad, exact[2].grad]
    for name, g, x in zip(("dq", "dk", "dv"), golden, (dq[:, :, ROWS], dk, dv), strict=True):
        rmse = (x.double() - g).square().mean((0, 2, 3)).sqrt()
        each = rmse.repeat_interleave(H // len(rmse))
        assert found[f"{name}_rmse"] == pytest.approx(each.tolist())
        assert all(0.5 < ratio < 2 for ratio in found[f"{name}_ratio"])


def test_a_shrunk_head_shows_in_gain_and_ratio():
    seen = observed()
    seen.out[0, 2] *= 0.75
    found = values("deviation", seen)
    assert found["gain"][2] == pytest.approx(-0.25, abs=0.01)
    assert max(found["ratio"][:2]) < 1.1
    assert found["ratio"][2] > 20


def test_what_is_not_there_is_nan_and_joins():
    bare = ObservedCall(observed().call, BF16, None)
    for name in ("deviation", "gradients"):
        probe = ROW_PROBES[name]
        assert all(math.isnan(x) for xs in values(name, bare).values() for x in xs)
        other = probe.read(observed())
        assert probe.merge(probe.read(bare), other).equal(other)


def test_nan_stays():
    seen = observed()
    seen.out[0, 1, 0, 0] = math.nan
    assert [math.isnan(x) for x in values("deviation", seen)["rmse"]] == [False, True, False, False]


def test_a_logit_that_is_nan_is_seen():
    seen = observed()
    seen.call.q[0, 1, 3, 0] = math.nan
    for name, of_heads in values("logits", seen).items():
        assert [math.isnan(x) for x in of_heads] == [False, True, False, False], name


def saturated(seed, factor=1.0):
    """A sound kernel in float32 beside another one's recipe, where rows have one large weight."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v, dout = (torch.randn(1, 4, 48, 16, generator=generator) for _ in range(4))
    leaves = [x.requires_grad_() for x in (60 * q, k, v)]
    out = attention(*leaves, causal=True)
    gradients = [factor * x for x in torch.autograd.grad(out, leaves, dout)]
    q, k, v = (x.detach() for x in leaves)
    call = Call(q, k, v, Mask("causal"), 0.25, torch.arange(48))
    return ObservedCall(
        call, FORMATS["fp32"], out.detach(), dout, Gradients(*gradients), RECIPES["torch-math"]
    )


def test_what_rounding_alone_may_do_is_no_ratio():
    """dV of a head is ten times as far off as the recipe's, both by next to nothing."""
    for seed in range(4):
        seen = saturated(seed)
        golden = seen.golden_gradients.dv
        off, predicted = (
            (x.double() - golden).square().mean((0, 2, 3))
            for x in (seen.gradients.dv, seen.predicted_gradients.dv)
        )
        assert seed != 1 or (off / predicted).amax().sqrt() > 8
        found = values("gradients", seen)
        assert max(max(found[f"{name}_ratio"]) for name in ("dq", "dk", "dv")) < 2
    found = values("gradients", saturated(0, factor=1.03))
    assert min(min(found[f"{name}_ratio"]) for name in ("dq", "dk", "dv")) > 50
