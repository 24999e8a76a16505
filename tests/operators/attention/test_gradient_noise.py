"""The size of rounding's own error in gradients, against torch's autograd in float32."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from roundoff.formats import FORMATS
from roundoff.operators.attention.call import Call
from roundoff.operators.attention.golden import golden
from roundoff.operators.attention.golden_gradients import golden_gradients
from roundoff.operators.attention.gradient_noise import gradient_noise
from roundoff.operators.attention.masks import Mask

ROWS = 48


def noise_of(call, dout, storage):
    return gradient_noise(call, golden(call)[0].lse, dout, FORMATS[storage])


def inputs(seed, peaked, kv_heads=4):
    generator = torch.Generator().manual_seed(seed)
    q, k, v, dout = (
        torch.randn(1, heads, ROWS, 16, generator=generator) for heads in (4, kv_heads, kv_heads, 4)
    )
    return q * peaked, k, v, dout


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("peaked", "least"), [(0.1, 0.4), (1.0, 0.4), (16.0, 0.02), (60.0, 0.005)])
def test_what_float32_is_off_by(peaked, least, causal):
    """As much, in flat rows; less where most weights are exactly 0 or 1; twice as much at most."""
    for seed in range(3):
        q, k, v, dout = inputs(seed, peaked)
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = scaled_dot_product_attention(*leaves, is_causal=causal)
        theirs = torch.autograd.grad(out, leaves, dout)
        mask = Mask("causal" if causal else "none")
        call = Call(q, k, v, mask, 0.25, torch.arange(ROWS))
        right, noise = golden_gradients(call, dout), noise_of(call, dout, "fp32")
        for name, x in zip(("dq", "dk", "dv"), theirs, strict=True):
            off = (x.double() - getattr(right, name)).square().mean((-1, -2))
            ratio = (off / getattr(noise, name).mean((-1, -2))).sqrt()
            assert least < ratio.min(), name
            assert ratio.max() < 2, name


def test_shared_heads_rows_and_hidden_keys():
    q, k, v, dout = inputs(0, 1.0, kv_heads=2)
    rows = torch.tensor([0, 5, 40])
    call = Call(q, k, v, Mask("causal"), 0.25, rows)
    noise = noise_of(call, dout[:, :, rows], "bf16")
    assert [tuple(x.shape) for x in (noise.dq, noise.dk, noise.dv)] == [
        (1, 4, 3, 16), (1, 2, ROWS, 16), (1, 2, ROWS, 16)]  # fmt: skip
    assert noise.dk[:, :, 41:].abs().max() == noise.dv[:, :, 41:].abs().max() == 0
    assert noise.dq[:, :, 1:].min() > 0
    wide = noise_of(call, dout[:, :, rows], "fp64")
    assert math.isclose(float((noise.dq / wide.dq)[0, 0, 1, 0]), 2.0**58, rel_tol=1e-6)
