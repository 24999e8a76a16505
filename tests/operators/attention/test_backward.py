"""The backward engine: exact in real arithmetic, like its kernels, and laws of its own."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from roundoff import emulate
from roundoff.errors import UnknownNameError, UnsupportedError, UsageError
from roundoff.formats import FORMATS
from roundoff.operators.attention import backward
from roundoff.operators.attention.backward import Forward, attend_keeping, differentiate
from roundoff.operators.attention.backward_recipe import Backward, Scaled
from roundoff.operators.attention.catalogue import RECIPES
from roundoff.operators.attention.engine import attend
from roundoff.operators.attention.golden_gradients import golden_gradients
from roundoff.operators.attention.recipe import Exponential, Logits, Prescale, Recipe, Tile
from roundoff.sites import Accumulator

BF16, FP32, FP64 = (FORMATS[n] for n in ("bf16", "fp32", "fp64"))
PLAIN = Recipe(name="plain", doc="", tile=Tile(8), backward=Backward(tile=Tile(8, 8)))
WITH_BACKWARD = [name for name, recipe in RECIPES.items() if recipe.backward is not None]
AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"


def exact(recipe):
    return recipe.choose({s.name: s.alternatives[0] for s in recipe.sites()})


def upstream(call, format="bf16", scale=1.0):
    shape = (*call.q.shape[:2], call.q.shape[2], call.v.shape[-1])
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * scale
    dtype = FORMATS[format].dtype
    return drawn.to(dtype).to(call.q.dtype)[:, :, call.rows]


def gradients(recipe, call, dout, storage=BF16):
    _, kept = attend_keeping(recipe, call, storage)
    found = differentiate(recipe, call, kept, dout, storage)
    return found.dq, found.dk, found.dv


def golden_of(call, dout):
    found = golden_gradients(call, dout)
    return found.dq, found.dk, found.dv


def relative(found, true):
    pairs = zip(found, true, strict=True)
    return max(((a - b).norm() / b.norm()).item() for a, b in pairs)


WAYS = [
    {},
    {"tile": Tile(7, 5)},
    {"tile": Tile(8, 8, "backward")},
    {"tile": Tile()},
    {"tile": Tile(None, 5)},
    {"logits": Logits("fma", FP64), "exponential": Exponential("2", "scale", argument=FP64,
                                                               format=FP64)},
    {"exponential": Exponential("2", argument=FP64, format=FP64)},
    {"prescale": Prescale("qk", FP64), "logits": Logits("before", FP64)},
    {"prescale": Prescale("q", FP64), "logits": Logits("before", FP64)},
    {"prescale": Prescale("k", FP64), "logits": Logits("before", FP64),
     "exponential": Exponential("2", "scale", argument=FP64, format=FP64)},
    {"delta": "exact"},
    {"delta": "stored"},
    {"delta": "weights"},
    {"scaled": Scaled("ds", FP64)},
    {"scaled": Scaled("products", FP64)},
    {"dq": Accumulator(FP64, order="unordered")},
    {"dk": Accumulator(FP64, order="fused"), "dv": Accumulator(FP64, order="fused")},
    {"dq": Accumulator(FP64, order="native", rounds="update"), "scaled": Scaled("products", FP64)},
    {"heads": None},
]  # fmt: skip


@pytest.mark.parametrize("mask", ["none", "causal", "boolean", "additive"])
@pytest.mark.parametrize("way", WAYS, ids=lambda w: " ".join(map(str, w)))
def test_every_way_of_computing_is_the_same_function(way, mask, make_call):
    call = make_call(n=20, m=23, heads=4, kv_heads=2, mask=mask, format="fp64", spread=1.5)
    recipe = exact(PLAIN)
    recipe = replace(recipe, backward=replace(recipe.backward, **way))
    dout = upstream(call, "fp64")
    pairs = zip(gradients(recipe, call, dout, FP64), golden_of(call, dout), strict=True)
    assert all((a - b).abs().max() < 1e-12 for a, b in pairs)


@pytest.mark.parametrize("name", ["torch-math", "baseline-fp32"])
def test_saved_weights_are_the_same_function(name, make_call):
    call = make_call(n=20, mask="boolean", format="fp64")
    dout = upstream(call, "fp64")
    found = gradients(exact(RECIPES[name]), call, dout, FP64)
    assert relative(found, golden_of(call, dout)) < 1e-12


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"n": 40, "mask": "causal"},
        {"n": 1, "m": 9},
        {"heads": 4, "kv_heads": 2, "mask": "boolean"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", [n for n in WITH_BACKWARD if not n.endswith(("fn", "e5m2"))])
def test_a_catalogue_row_is_near_golden(name, case, make_call):
    call = make_call(**case)
    dout = upstream(call)
    found = gradients(RECIPES[name], call, dout)
    if case.get("n") == 1:  # dQ and dK are differences of nearly equal numbers
        found, true = found[2:], golden_of(call, dout)[2:]
    else:
        true = golden_of(call, dout)
    assert relative(found, true) < 8 * BF16.eps


@pytest.mark.parametrize("name", WITH_BACKWARD)
def test_every_alternative_of_every_backward_site_runs(name, make_call):
    call = make_call(n=20, heads=4, kv_heads=2)
    dout = upstream(call)
    recipe = RECIPES[name]
    for site in recipe.sites():
        if site.name.startswith("backward."):
            for choice in site.alternatives:
                found = gradients(recipe.choose({site.name: choice}), call, dout)
                assert [x.shape for x in found] == [x.shape for x in (call.q, call.k, call.v)]


def test_an_absent_backward_has_no_sites():
    recipe = replace(PLAIN, backward=None)
    assert not any(site.name.startswith("backward.") for site in recipe.sites())
    with pytest.raises(UnknownNameError, match=r"backward\.ds"):
        recipe.choose({"backward.ds": FP64})
    assert PLAIN.choose({"backward.ds": FP64}).backward.ds == FP64


def test_an_exact_backward_site_leaves_the_forward_pass_alone(make_call):
    call = make_call(n=40)
    recipe = RECIPES["fa2"].choose({"backward.ds": FP64})
    kept, _ = attend_keeping(recipe, call, BF16)
    assert torch.equal(kept.out, attend(RECIPES["fa2"], call, BF16).out)


def test_each_rounding_of_the_backward_pass_is_felt(make_call):
    call = make_call(n=40)
    dout = upstream(call)
    base = replace(exact(PLAIN), name="base")
    true = gradients(base, call, dout)
    for name, seen in {
        "lse": 0,
        "probabilities": 2,
        "dp": 0,
        "difference": 0,
        "delta_sum": 0,
        "ds": 1,
        "dq": 0,
        "dk": 1,
        "dv": 2,
        "scaled": 0,
        "output": 2,
    }.items():
        place = f"backward.{name}"
        site = next(s for s in base.sites() if s.name == place)
        coarse = site.alternatives[2]
        found = gradients(base.choose({place: coarse}), call, dout)
        assert 1e-5 < relative([found[seen]], [true[seen]]) < 0.05, name


def test_unordered_sums_differ_by_seed_and_repeat_by_seed(make_call):
    call = make_call(n=200, heads=1)
    dout = upstream(call)

    def of_seed(seed):
        total = Accumulator(FP32, order="unordered", seed=seed)
        how = replace(PLAIN.backward, dq=total, output=FP32)
        return gradients(replace(PLAIN, backward=how), call, dout)

    first, again, other = of_seed(0), of_seed(0), of_seed(1)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    assert relative(first[:1], other[:1]) < 1e-6
    assert torch.equal(first[1], other[1])


@pytest.mark.parametrize("mask", ["none", "causal"])
@pytest.mark.parametrize("name", ["fa2", "torch-cpu-flash", "torch-math", "paper-bf16"])
def test_sampled_rows_are_rows_of_the_whole(name, mask, make_call):
    """Bit for bit in dQ; dK and dV take fewer terms, which fp32 may add in another order."""
    call = make_call(n=300, d=32, mask=mask)
    rows = torch.tensor([0, 5, 63, 64, 130, 131, 299])
    dout = torch.zeros_like(upstream(call))
    dout[:, :, rows] = upstream(call)[:, :, rows]
    whole = gradients(RECIPES[name], call, dout)
    some = gradients(RECIPES[name], replace(call, rows=rows), dout[:, :, rows])
    assert torch.equal(some[0], whole[0][:, :, rows])
    for a, b in zip(some[1:], whole[1:], strict=True):
        assert (a == b).double().mean() > 0.99
        assert relative([a], [b]) < 1e-3


def test_heads_a_few_at_a_time_change_nothing(make_call, monkeypatch):
    call = make_call(n=40, heads=4, kv_heads=2, batch=2, mask="boolean")
    dout = upstream(call)
    for name in ("torch-math", "torch-cpu-flash", "fa2"):
        whole = gradients(RECIPES[name], call, dout)
        with monkeypatch.context() as patch:
            patch.setattr(backward, "MOST_SCORES", 1)
            parts = gradients(RECIPES[name], call, dout)
        assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_a_row_that_sees_nothing_has_no_gradient_and_nan_goes_through(make_call):
    call = make_call(mask="boolean")
    dout = upstream(call)
    for name in ("fa2", "torch-math"):
        assert (gradients(RECIPES[name], call, dout)[0][:, :, 12] == 0).all()
        bad = dout.clone()
        bad[0, 0, 5, 0] = torch.nan
        found = gradients(RECIPES[name], call, bad)
        assert found[0][0, 0, 5].isnan().all()
        assert not found[0][0, 1].isnan().any()
        assert found[2][0, 0, :, 0].isnan().any()


def test_what_has_no_gradients_is_refused(make_call):
    call = make_call()
    dout = upstream(call)
    with pytest.raises(UnsupportedError, match="no backward pass"):
        gradients(RECIPES["fa3"], call, dout)
    tiled = replace(RECIPES["baseline-bf16"], tile=Tile(8))
    with pytest.raises(UnsupportedError, match="saves P"):
        gradients(tiled, call, dout)
    with pytest.raises(UsageError, match="nowhere or twice"):
        Backward(prescale=Prescale("q"))


# Against the kernels themselves.

CASES = [
    {"n": 33, "mask": "causal"},
    {"n": 257, "m": 100},
    {"n": 100, "m": 257, "mask": "causal"},
    {"n": 513, "d": 64, "mask": "causal", "spread": 2.0},
    {"n": 200, "d": 64, "heads": 4, "kv_heads": 2},
    {"n": 64, "d": 40, "dv": 24},
    {"n": 50, "scale": 0.3, "batch": 2},
    {"n": 60, "mask": "boolean"},
    {"n": 60, "mask": "additive"},
]


def kernel(call, format, dout, backend):
    dtype = FORMATS[format].dtype
    q, k, v = (x.to(dtype).requires_grad_() for x in (call.q, call.k, call.v))
    mask = call.mask.tensor
    mask = mask if mask is None or mask.dtype == torch.bool else mask.to(dtype)
    with sdpa_kernel(backend):
        out = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=call.mask.kind == "causal", scale=call.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
    return torch.autograd.grad(out, (q, k, v), dout.to(dtype))


def share(a, b):
    return (a.double() == b.double()).double().mean().item()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("format", ["bf16", "fp16"])
@pytest.mark.parametrize("reduced", [False, True])
def test_torch_math_bit_for_bit(reduced, format, case, make_call):
    call = make_call(**case, format=format)
    dout = upstream(call, format)
    allow = torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp
    allow(reduced)
    try:
        theirs = kernel(call, format, dout, SDPBackend.MATH)
    finally:
        allow(False)
    name = "torch-math-reduced" if reduced else "torch-math"
    ours = gradients(RECIPES[name], call, dout, FORMATS[format])
    assert [share(a, b) for a, b in zip(ours, theirs, strict=True)] == [1.0, 1.0, 1.0]


@pytest.mark.skipif(not AVX512, reason="the recipe has AVX-512's lanes")
@pytest.mark.parametrize("n", [100, 512, 1025])
@pytest.mark.parametrize("format", ["bf16", "fp16"])
def test_torch_cpu_flash_behind_its_own_forward_pass(format, n, make_call):
    """Given the kernel's O and LSE, what differs is the order of sums inside products alone."""
    call = make_call(n=n, d=64, format=format)
    dtype = FORMATS[format].dtype
    dout = upstream(call, format)
    q, k, v = (x.to(dtype) for x in (call.q, call.k, call.v))
    ops = torch.ops.aten
    out, lse = ops._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False)
    theirs = ops._scaled_dot_product_flash_attention_for_cpu_backward(
        dout.to(dtype), q, k, v, out, lse, 0.0, False
    )
    forward = Forward(out.float(), out.float(), lse)
    recipe = RECIPES["torch-cpu-flash"]
    found = differentiate(recipe, call, forward, dout, FORMATS[format])
    ours = found.dq, found.dk, found.dv
    assert min(share(a, b) for a, b in zip(ours, theirs, strict=True)) > 0.998
    one_block = replace(recipe, backward=replace(recipe.backward, tile=Tile(512, 128)))
    other = differentiate(one_block, call, forward, dout, FORMATS[format])
    assert n == 100 or share(other.dv, theirs[2]) < 0.9


@pytest.mark.skipif(not AVX512, reason="the recipe has AVX-512's lanes")
def test_torch_cpu_flash_adds_the_heads_of_a_group_in_the_inputs_format(make_call):
    call = make_call(n=200, d=64, heads=4, kv_heads=2)
    dout = upstream(call)
    theirs = kernel(call, "bf16", dout, SDPBackend.FLASH_ATTENTION)
    recipe = RECIPES["torch-cpu-flash"]
    apart = replace(recipe, backward=replace(recipe.backward, heads=BF16))
    assert share(gradients(recipe, call, dout)[2], theirs[2]) > 0.995
    assert share(gradients(apart, call, dout)[2], theirs[2]) < 0.8


# As a function of autograd.


def test_gradcheck_of_an_exact_recipe(make_call):
    call = make_call(n=6, d=4, heads=2, kv_heads=1, format="fp64")
    leaves = [x.clone().requires_grad_() for x in (call.q, call.k, call.v)]
    recipe = exact(PLAIN)
    assert torch.autograd.gradcheck(
        lambda q, k, v: emulate(recipe, q, k, v, causal=True).out, leaves
    )


def test_emulate_gives_the_engines_gradients_in_the_inputs_dtype(make_call):
    call = make_call(n=40, mask="causal", heads=4, kv_heads=2)
    q, k, v = (x.bfloat16().requires_grad_() for x in (call.q, call.k, call.v))
    dout = upstream(call)
    result = emulate("fa2", q, k, v, causal=True)
    assert torch.equal(result.out.float(), attend(RECIPES["fa2"], call, BF16).out)
    assert not result.lse.requires_grad
    found = torch.autograd.grad(result.out, (q, k, v), dout.bfloat16())
    for a, b in zip(found, gradients(RECIPES["fa2"], call, dout), strict=True):
        assert a.dtype == torch.bfloat16
        assert torch.equal(a.float(), b)


def test_emulate_says_what_has_no_gradient():
    q = torch.randn(1, 1, 4, 8, requires_grad=True)
    out = emulate("fa3", q, q, q).out
    with pytest.raises(UnsupportedError, match="no backward pass"):
        out.sum().backward()
    mask = torch.zeros(1, 1, 4, 4, requires_grad=True)
    with pytest.raises(UsageError, match="mask requires a gradient"):
        emulate("fa2", q, q, q, mask=mask)


def test_a_model_with_a_recipe_in_it_trains():
    torch.manual_seed(0)
    project = torch.nn.Linear(8, 24)
    head = torch.nn.Linear(8, 4)
    optimizer = torch.optim.Adam([*project.parameters(), *head.parameters()], lr=0.02)
    x, target = torch.randn(4, 12, 8), torch.randint(0, 4, (4, 12))
    losses = []
    for _ in range(30):
        q, k, v = project(x).bfloat16().unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        out = emulate("fa2", q, k, v, causal=True).out.transpose(1, 2).flatten(2)
        loss = torch.nn.functional.cross_entropy(head(out.float()).flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        assert all(project.weight.grad.view(3, 8, 8)[i].norm() > 0 for i in range(3))
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
