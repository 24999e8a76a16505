"""ONNX Runtime: what it takes, what proves that it ran, the recipe, and what is left over."""

import pytest
import torch

from roundoff.errors import KernelError
from roundoff.formats import FORMATS
from roundoff.kernels import KERNELS
from roundoff.operators.attention.recipe import Logits, Normalise
from roundoff.operators.exponentials import fma
from roundoff.sites import INPUT, OPMATH, Accumulator

pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnx", reason="needs the extra onnx")

AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
only_avx512 = pytest.mark.skipif(not AVX512, reason="MLAS has other loops without AVX-512")
LONG = [pytest.mark.slow, only_avx512]
CASES = [
    {"seq_len": 1},
    {"seq_len": 1, "kv_len": 300},
    {"seq_len": 33, "head_dim": 64, "v_dim": 24},
    {"seq_len": 100, "kv_len": 300, "mask": "causal-lower-right", "kv_heads": 1},
    {"seq_len": 300, "mask": "causal", "head_dim": 64},
    {"seq_len": 200, "mask": "boolean"},
    {"seq_len": 200, "mask": "additive"},
    {"seq_len": 64, "mask": "window:9"},
    {"seq_len": 257, "head_dim": 128, "scale": 0.3},
    pytest.param({"seq_len": 1024, "head_dim": 64}, marks=[pytest.mark.slow, only_avx512]),
    pytest.param(
        {"seq_len": 64, "kv_len": 2048, "head_dim": 64}, marks=[pytest.mark.slow, only_avx512]
    ),
]
# exp(r) = 1 + r + r^2 (1/2 + ...), from the highest power down: MLAS's polynomial
MLAS = ("0x1.694p-10", "0x1.125edcp-7", "0x1.555b5ap-5", "0x1.55545p-3", "0x1.fffff6p-2", "1", "1")


def softmax_of_mlas(s):
    """Softmax over the last axis, operation by operation."""
    x = s - s.amax(-1, keepdim=True)
    n = fma(x, torch.tensor(1.4426950408889634).item(), 12582912.0) - 12582912.0
    r = fma(n, torch.tensor(-0.693145752).item(), x)
    r = fma(n, torch.tensor(-1.42860677e-6).item(), r)
    p = torch.zeros_like(r)
    for coefficient in MLAS:
        p = fma(p, r, float.fromhex(coefficient))
    p = torch.ldexp(p, n)
    lanes = torch.nn.functional.pad(p, (0, -p.shape[-1] % 16)).unflatten(-1, (-1, 16))
    total = lanes[..., 0, :]
    for group in range(1, lanes.shape[-2]):
        total = total + lanes[..., group, :]
    total = total[..., :8] + total[..., 8:]
    while total.shape[-1] > 1:
        total = total[..., 0::2] + total[..., 1::2]
    return p * (1.0 / total)


@pytest.mark.parametrize("given", CASES, ids=str)
def test_the_recipe_in_fp16(given, draw, match):
    """Another last bit in exp or l now and then rounds a P otherwise, and with it its row."""
    assert match("onnx-cpu", draw("fp16", **given)) >= 0.997


@only_avx512
def test_the_choices_of_the_recipe_are_each_needed(draw, match):
    problem = draw("fp16", seq_len=257, heads=4)
    assert match("onnx-cpu", problem) > 0.997
    others = {
        "P not rounded": {"probabilities": OPMATH},
        "S not rounded": {"logits": Logits("after")},
        "S rounded before the scale too": {"scores": FORMATS["fp16"]},
        "l divided out at the end": {"normalise": Normalise("end", "reciprocal")},
    }
    for label, changes in others.items():
        assert match("onnx-cpu", problem, **changes) < 0.9, label


def test_a_mask_is_added_before_s_is_rounded(draw, match):
    problem = draw("fp16", seq_len=257, heads=4, mask="additive")
    rounded_first = {"logits": Logits("after", INPUT)}
    assert match("onnx-cpu", problem, **rounded_first) < 0.9 < match("onnx-cpu", problem)


@only_avx512
@pytest.mark.parametrize("keys", [16, 24, 33, 100, 121, 256])
def test_what_remains_of_the_softmax_is_mlas(keys, draw, with_inputs):
    """K and V are the identity: S is Q, and the output is P, with no sum in either product."""
    problem = draw("fp32", heads=1, seq_len=40, kv_len=keys, head_dim=keys, scale=1.0)
    identity = torch.eye(keys)[None, None]
    problem = with_inputs(problem, k=identity, v=identity)
    out = KERNELS["onnx-cpu"].run(problem)["out"]
    assert torch.equal(out, softmax_of_mlas(problem.inputs["q"]))


@only_avx512
def test_the_product_takes_128_terms_at_a_time(draw, share):
    """S of one tile and P as MLAS makes them, and its own steps through V: every bit."""
    problem = draw("fp32", heads=1, seq_len=64, kv_len=257, head_dim=128)
    q, k, v = (problem.inputs[name] for name in "qkv")
    scale = torch.tensor(128**-0.5)
    p = softmax_of_mlas((q @ k.transpose(-1, -2)) * scale)
    parts = [p[..., at : at + 128] @ v[..., at : at + 128, :] for at in (0, 128, 256)]
    in_steps = parts[0] + parts[1] + parts[2]
    out = KERNELS["onnx-cpu"].run(problem)["out"]
    assert share(out, in_steps) > 0.99
    assert share(out, p @ v) < 0.3


def test_the_causal_mask_aligns_at_the_upper_left(draw):
    problem = draw("fp32", seq_len=3, kv_len=8, mask="causal")
    out = KERNELS["onnx-cpu"].run(problem)["out"]
    torch.testing.assert_close(out[:, :, 0], problem.inputs["v"][:, :, 0])


@pytest.mark.parametrize("format", ["fp16", "fp32"])
def test_a_row_that_sees_no_key_is_zero(format, draw):
    problem = draw(format, seq_len=9, kv_len=5, mask="causal-lower-right")
    out = KERNELS["onnx-cpu"].run(problem)["out"]
    assert (out[:, :, :4] == 0).all()
    assert (out[:, :, 4:] != 0).all()


def test_an_operator_taken_apart_is_found_out(draw):
    problem = draw("fp64", seq_len=8)
    assert "format fp64" in KERNELS["onnx-cpu"].refuses(problem)
    with pytest.raises(KernelError, match=r"would run .*MatMul.* expected Attention on CPU"):
        KERNELS["onnx-cpu"].bind(problem)


def test_it_has_no_gradients(draw):
    assert "gradients on cpu" in KERNELS["onnx-cpu"].refuses(draw("fp32", gradients="yes"))


def test_a_scale_must_be_positive(draw):
    reason = KERNELS["onnx-cpu"].refuses(draw("fp32", seq_len=8, scale=-0.5))
    assert reason == "scale -0.5 (takes positive ones)"


def test_missing_libraries_name_their_extra(monkeypatch):
    monkeypatch.setattr("roundoff.kernels.kernel.is_installed", lambda _: False)
    reason = "no onnxruntime and no onnx; pip install 'roundoff[onnx]'"
    assert KERNELS["onnx-cpu"].missing() == reason


def test_the_product_is_not_carried_in_fp16(draw, match):
    problem = draw("fp16", seq_len=300)
    assert match("onnx-cpu", problem, pv=Accumulator(FORMATS["fp16"], chunk=64)) < 0.9
