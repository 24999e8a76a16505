"""Recipes against the kernels that they describe, on this CPU.

The share of bit-identical output elements: all of them for torch's math back-end; for CPU
flash the order of sums inside a matrix product is unknown, so at most a few in ten thousand differ
(docs/recipes.md has the recorded shares).
"""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from roundoff.formats import FORMATS
from roundoff.operators.attention.catalogue import RECIPES
from roundoff.operators.attention.engine import attend

AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
BF16_DOTS = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
"""Whether products of bf16 matrices have instructions of their own, with an order of their own:
then the kernel's bits are as far from the recipe's as the recipe's are from its reordered self."""
only_avx512 = pytest.mark.skipif(not AVX512, reason="the recipe has AVX-512's 16 lanes")
CASES = [
    {"n": 1},
    {"n": 33, "mask": "causal"},
    {"n": 257, "m": 100},
    {"n": 100, "m": 257, "mask": "causal"},
    {"n": 513, "d": 64, "mask": "causal", "spread": 2.0},
    {"n": 200, "d": 64, "heads": 4, "kv_heads": 2},
    {"n": 700, "d": 64},
    {"n": 64, "d": 40, "dv": 24},
    {"n": 50, "scale": 0.3, "batch": 2},
]


def cast(call, format):
    dtype = FORMATS[format].dtype
    return [x.to(dtype) for x in (call.q, call.k, call.v)]


def math_kernel(call, format, *, reduced):
    allow = torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    allow(reduced)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            return scaled_dot_product_attention(
                *cast(call, format),
                is_causal=call.mask.kind == "causal",
                scale=call.scale,
                enable_gqa=call.q.shape[1] != call.k.shape[1],
            )
    finally:
        allow(before)


def flash_kernel(call, format):
    q, k, v = cast(call, format)
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    causal = call.mask.kind == "causal"
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, scale=call.scale
    )


def share(a, b):
    """Bit for bit: +0 is not -0."""
    bits = [x.double().view(torch.int64) for x in (a, b)]
    return (bits[0] == bits[1]).double().mean().item()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("format", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["torch-math", "torch-math-reduced"])
def test_torch_math_bit_for_bit(name, format, case, make_call):
    call = make_call(**case, format=format)
    theirs = math_kernel(call, format, reduced=name.endswith("reduced"))
    ours = attend(RECIPES[name], call, FORMATS[format])
    assert share(ours.out, theirs) == 1.0


@pytest.mark.parametrize("name", ["torch-math", "torch-math-reduced", "torch-cpu-flash"])
def test_an_output_that_underflows_keeps_its_sign(name, make_call):
    """One value of four is the smallest negative number, so the mean rounds to -0."""
    call = make_call(n=4, heads=1, d=8, dv=8, format="fp16")
    v = torch.zeros_like(call.v)
    v[..., 0, :] = -(2.0**-24)
    call = replace(call, q=torch.zeros_like(call.q), v=v)
    if name == "torch-cpu-flash":
        theirs, _ = flash_kernel(call, "fp16")
    else:
        theirs = math_kernel(call, "fp16", reduced=name.endswith("reduced"))
    ours = attend(RECIPES[name], call, FORMATS["fp16"])
    assert theirs.signbit().all()
    assert share(ours.out, theirs) == 1.0


@pytest.mark.parametrize("case", CASES, ids=str)
def test_torch_math_in_fp32_bit_for_bit(case, make_call):
    call = make_call(**case, format="fp32")
    ours = attend(RECIPES["torch-math"], call, FORMATS["fp32"])
    assert share(ours.out, math_kernel(call, "fp32", reduced=False)) == 1.0


@pytest.mark.parametrize("kind", ["boolean", "additive"])
@pytest.mark.parametrize("name", ["torch-math", "torch-math-reduced"])
def test_torch_math_with_a_mask_bit_for_bit(name, kind, make_call):
    call = make_call(n=60, mask=kind)
    mask = call.mask.tensor if kind == "boolean" else call.mask.tensor.bfloat16()
    allow = torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp
    allow(name.endswith("reduced"))
    try:
        with sdpa_kernel(SDPBackend.MATH):
            theirs = scaled_dot_product_attention(*cast(call, "bf16"), attn_mask=mask)
    finally:
        allow(False)
    ours = attend(RECIPES[name], call, FORMATS["bf16"])
    assert share(ours.out, theirs) == 1.0


@only_avx512
@pytest.mark.parametrize("case", [c for c in CASES if "dv" not in c], ids=str)
@pytest.mark.parametrize(("format", "least"), [("bf16", 0.9998), ("fp16", 0.999), ("fp32", 0.85)])
def test_torch_cpu_flash(format, least, case, make_call):
    call = make_call(**case, format=format)
    theirs, lse = flash_kernel(call, format)
    ours = attend(RECIPES["torch-cpu-flash"], call, FORMATS[format])
    assert share(ours.out, theirs) >= (0.998 if format == "bf16" and BF16_DOTS else least)
    assert (ours.lse - lse).abs().max() <= 4e-7 * lse.abs().max().clamp(min=1.0)


@only_avx512
def test_the_choices_of_cpu_flash_are_each_needed(make_call):
    """A recipe that differs in one place explains less: the match is no accident."""
    call = make_call(n=600, d=64, heads=1)
    theirs, _ = flash_kernel(call, "bf16")
    recipe = RECIPES["torch-cpu-flash"]
    whole = share(attend(recipe, call, FORMATS["bf16"]).out, theirs)
    others = {
        "exact exp": recipe.choose({"approximation": "exact"}),
        "P not rounded": recipe.choose({"probabilities": FORMATS["fp32"]}),
        "tile of 256": replace(recipe, tile=replace(recipe.tile, keys=256)),
        "l after the cast": replace(recipe, row_sum=replace(recipe.row_sum, adds="after")),
        "whole rows": RECIPES["torch-math"],
    }
    for label, other in others.items():
        assert share(attend(other, call, FORMATS["bf16"]).out, theirs) < whole - 0.005, label
