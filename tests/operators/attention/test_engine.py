"""Laws of the engine that no single recipe shows."""

import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from roundoff.errors import UnsupportedError, UsageError
from roundoff.formats import FORMATS
from roundoff.operators.attention import engine
from roundoff.operators.attention.call import Call
from roundoff.operators.attention.catalogue import RECIPES
from roundoff.operators.attention.engine import attend
from roundoff.operators.attention.golden import golden
from roundoff.operators.attention.masks import Mask, make_mask
from roundoff.operators.attention.operands import rotation
from roundoff.operators.attention.operator import ATTENTION
from roundoff.operators.attention.recipe import (
    Exponential,
    Logits,
    Maximum,
    Normalise,
    Prescale,
    Recipe,
    RowSum,
    Tile,
)
from roundoff.operators.attention.steps import Block, new_maximum
from roundoff.operators.protocol import normalise
from roundoff.sites import Accumulator, Quantizer

BF16, FP16, FP32, FP64 = (FORMATS[n] for n in ("bf16", "fp16", "fp32", "fp64"))
PLAIN = Recipe(name="plain", doc="fp32 in tiles", tile=Tile(8))
EXACT = PLAIN.choose({s.name: s.alternatives[0] for s in PLAIN.sites()})


def rmse(call, result):
    return (result.out - golden(call)[0].out).square().mean().sqrt().item()


@pytest.mark.parametrize(
    "tile",
    [Tile(), Tile(7), Tile(8, direction="backward"), Tile(1), Tile(100), Tile(8, splits=3),
     Tile(8, splits=3, direction="backward"), Tile(splits=40)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("mask", ["none", "causal", "window:5", "boolean"])
@pytest.mark.parametrize(
    "change",
    [{}, {"exponential": Exponential("2", argument=FP64, format=FP64)},
     {"logits": Logits("fma", FP64)}, {"maximum": Maximum("row", format=FP64, factor=FP64)},
     {"maximum": Maximum("lazy", 3.0, format=FP64, factor=FP64)},
     {"maximum": Maximum("tie-safe", format=FP64, factor=FP64)},
     {"normalise": Normalise("block", format=FP64)},
     {"normalise": Normalise("end", "reciprocal", FP64)},
     {"prescale": Prescale("qk", FP64), "logits": Logits("before", FP64)},
     {"prescale": Prescale("q", FP64), "logits": Logits("before", FP64)},
     {"row_sum": RowSum("after", Accumulator(FP64, chunk=3))},
     {"row_sum": RowSum("before", Accumulator(FP64, order="lanes"))},
     {"row_sum": RowSum("before", Accumulator(FP64, order="vector"))},
     {"pv": Accumulator(FP64, order="fused")},
     {"pv": Accumulator(FP64, chunk=3, order="fused"), "qk": Accumulator(FP64, chunk=5)}],
    ids=lambda c: " ".join(f"{k}={getattr(v, 'rule', '')}" for k, v in c.items()),
)  # fmt: skip
def test_every_way_of_computing_is_the_same_function(change, mask, tile, make_call):
    call = make_call(n=20, mask=mask, format="fp64", spread=2.0)
    result = attend(replace(EXACT, tile=tile, **change), call, FP64)
    reference = golden(call)[0]
    assert (result.out - reference.out).abs().max() < 1e-12
    hidden = reference.lse == -math.inf
    assert torch.equal(result.lse == -math.inf, hidden)
    assert ((result.lse - reference.lse)[~hidden].abs() < 1e-12).all()


@pytest.mark.parametrize("mask", ["none", "causal", "window:9", "boolean"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_rescales_are_the_rises_of_the_running_maximum(direction, mask, make_call):
    call = make_call(n=33, mask=mask, spread=2.0)
    result = attend(replace(PLAIN, tile=Tile(5, direction=direction)), call, BF16)
    s = (call.q.double() @ call.k.double().transpose(-1, -2)) * call.scale
    s = call.mask.apply(s, call.rows, slice(0, 33), call.lengths)
    tops = [s[..., at : at + 5].amax(-1) for at in range(0, 33, 5)]
    if direction == "backward":
        tops.reverse()
    times, rises, m = torch.zeros(s.shape[:-1]), torch.zeros(s.shape[:-1]), tops[0]
    for top in tops[1:]:
        risen = (top > m) & (m > -math.inf)
        times += risen
        rises += torch.where(risen, (top - m) / math.log(2), 0.0)
        m = torch.maximum(m, top)
    assert torch.equal(result.rescales, times)
    assert torch.allclose(result.rescaled_by, rises, atol=1e-4)


def test_lazy_rescales_only_beyond_its_threshold(make_call):
    call = make_call(n=64, spread=2.0)
    lazy = replace(PLAIN, maximum=Maximum("lazy", 8.0))
    always = attend(PLAIN, call, BF16)
    some = attend(lazy, call, BF16)
    none = attend(replace(PLAIN, maximum=Maximum("lazy", 1e4)), call, BF16)
    assert 0 < some.rescales.sum() < always.rescales.sum()
    assert (some.rescaled_by >= 8.0 * some.rescales).all()
    assert none.rescales.sum() == 0
    zero = attend(replace(PLAIN, maximum=Maximum("lazy", 0.0)), call, BF16)
    assert torch.equal(zero.out, always.out)
    row = attend(replace(PLAIN, maximum=Maximum("row")), call, BF16)
    assert row.rescales.sum() == 0


def test_keys_of_one_tile_may_be_permuted_where_sums_are_exact(make_call):
    call = make_call(n=16, format="fp64")
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    other = replace(call, k=call.k[:, :, order], v=call.v[:, :, order])
    a, b = (attend(replace(EXACT, tile=Tile()), c, FP64) for c in (call, other))
    assert (a.out - b.out).abs().max() < 1e-15


def test_equal_keys_give_the_mean_of_v(make_call):
    call = make_call(n=16)
    call = replace(call, k=call.k[:, :, :1].expand(-1, -1, 16, -1))
    for name in ("torch-math", "fa2", "baseline-fp32"):
        out = attend(RECIPES[name], call, FP32).out
        mean = call.v.double().mean(-2, keepdim=True).expand_as(out)
        assert (out - mean).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["baseline", "paper"])
def test_errors_follow_the_formats_epsilon(kind, make_call):
    call = make_call(n=96, d=32, format="fp16", spread=1.0)
    sizes = {}
    for name in ("bf16", "fp16", "tf32", "fp32"):
        recipe = replace(RECIPES[f"{kind}-{name}"], output=FP32)
        sizes[name] = rmse(call, attend(recipe, call, FP32)) / FORMATS[name].eps
    assert max(sizes.values()) < 3 * min(sizes.values())
    exact = replace(RECIPES[f"{kind}-fp64"], output=FP64)
    assert rmse(call, attend(exact, call, FP32)) < 50 * FP64.eps * min(sizes.values())


@pytest.mark.parametrize("size", [1.0, 30.0, 1e3, 1e4, 6e4])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("format", ["bf16", "fp16"])
def test_tied_maxima_are_safe_at_any_size(format, sign, size):
    """All logits equal `sign * size`: P is one number, and the output the mean of V."""
    fmt = FORMATS[format]
    recipe = replace(RECIPES["paper-bf16-tie-safe"].choose({
        s.name: replace(s.choice, format=fmt) if isinstance(s.choice, Accumulator) else fmt
        for s in RECIPES["paper-bf16-tie-safe"].sites()
        if s.choice == BF16 or isinstance(s.choice, Accumulator)
    }), tile=Tile(4))  # fmt: skip
    root = math.sqrt(size)
    q = torch.full((1, 1, 12, 1), sign * root)
    k = torch.full((1, 1, 12, 1), root)
    v = torch.linspace(1, 2, 12)[:, None].expand(1, 1, 12, 3).contiguous()
    result = attend(recipe, Call(q, k, v, Mask(), 1.0, torch.arange(12)), FP32)
    assert result.out.isfinite().all()
    assert (result.out - 1.5).abs().max() < 40 * fmt.eps
    assert (result.lse - sign * size).abs().max() < 4.0 + 2 * size * fmt.eps


@pytest.mark.parametrize(
    ("top", "shift"), [(3.0, 6.0), (-3.0, 0.0), (0.0, 0.0), (1e4, 1e4 + 43.67)]
)
@pytest.mark.parametrize("tied", [True, False])
def test_the_shift_of_tied_rows_is_the_papers(tied, top, shift, make_call):
    """m = beta * maximum above zero, 0 below, capped; rows without ties keep their maximum."""
    call = make_call(n=1)
    recipe = replace(PLAIN, maximum=Maximum("tie-safe")).resolved(BF16, head_dim=16, causal=False)
    block = Block(recipe, call, call.q, call.k, call.v, call.rows)
    s = torch.tensor([[top, top - 5.0, top if tied else top - 1.0]])
    m = new_maximum(block, torch.full((1, 1), -math.inf), s)
    assert m.item() == pytest.approx(shift if tied else top, abs=0.01)
    later = new_maximum(block, m, s - 100.0)
    assert torch.equal(later, m)


@pytest.mark.parametrize("scale", [0.0, -0.5])
def test_scales_that_are_not_positive(scale, make_call):
    call = make_call(n=12, scale=scale)
    reference = golden(call)[0].out
    for name in ("torch-math", "torch-cpu-flash", "baseline-fp32"):
        assert (attend(RECIPES[name], call, FP32).out - reference).abs().max() < 3e-4
    with pytest.raises(UnsupportedError, match="needs a positive scale"):
        attend(RECIPES["fa2"], call, BF16)


def test_an_added_mask_is_added_to_scaled_scores(make_call):
    """Where the recipe folds the scale into exp's FMA, a bias must not be scaled along."""
    call = make_call(n=12, mask="additive", scale=0.25)
    folded = replace(EXACT, logits=Logits("fma", FP64))
    assert (attend(folded, call, FP64).out - golden(call)[0].out).abs().max() < 1e-13


@pytest.mark.parametrize(("kind", "causal"), [("causal", True), ("none", False)])
@pytest.mark.parametrize(("n", "m"), [(5, 9), (9, 5), (7, 7), (1, 6), (6, 1)])
def test_causal_masks_are_torchs(n, m, kind, causal, make_call):
    call = make_call(n=n, m=m, mask=kind, format="fp64")
    theirs = scaled_dot_product_attention(call.q, call.k, call.v, is_causal=causal)
    assert (attend(EXACT, call, FP64).out - theirs).abs().max() < 1e-14
    assert (golden(call)[0].out - theirs).abs().max() < 1e-14


@pytest.mark.parametrize("name", ["torch-math", "fa2", "paper-bf16", "fa3-fp8", "torch-cpu-flash"])
def test_empty_tensors(name):
    none, some = torch.zeros(1, 2, 0, 8), torch.randn(1, 2, 3, 8)
    result = attend(RECIPES[name], Call(some, none, none, Mask(), 1.0, torch.arange(3)), BF16)
    assert (result.out == 0).all()
    assert (result.lse == -math.inf).all()
    result = attend(RECIPES[name], Call(none, some, some, Mask(), 1.0, torch.arange(0)), BF16)
    assert result.out.shape == (1, 2, 0, 8)
    assert result.lse.shape == result.rescales.shape == (1, 2, 0)
    nobody = torch.zeros(0, 2, 3, 8)
    result = attend(RECIPES[name], Call(nobody, nobody, nobody, Mask(), 1.0, torch.arange(3)), BF16)
    assert result.out.shape == (0, 2, 3, 8)


class Setting:
    def __init__(self, where, value):
        self.where, self.value = where, value

    def __enter__(self):
        self.before, self.where.fp32_precision = self.where.fp32_precision, self.value

    def __exit__(self, *error):
        assert self.where.fp32_precision == self.value, "the caller's setting was not put back"
        self.where.fp32_precision = self.before


OUTSIDE = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference": torch.inference_mode,
    "mkldnn": lambda: Setting(torch.backends.mkldnn.matmul, "bf16"),
    "cuda": lambda: Setting(torch.backends.cuda.matmul, "tf32"),
}


@pytest.mark.parametrize("setting", OUTSIDE)
@pytest.mark.parametrize("name", ["torch-math", "baseline-fp32", "torch-cpu-flash"])
def test_settings_outside_change_nothing(name, setting, make_call):
    call = make_call(n=256, d=128, format="fp32")
    reference = attend(RECIPES[name], call, FP32)
    exact = golden(call)[0]
    with OUTSIDE[setting]():
        again, still = attend(RECIPES[name], call, FP32), golden(call)[0]
    assert torch.equal(reference.out, again.out)
    assert torch.equal(exact.out, still.out)


def test_the_older_switch_of_torch_is_seen_and_left_alone():
    """In a process of its own: torch's older and newer interface do not mix."""
    code = """
import torch
from roundoff.operators.arithmetic import plain_arithmetic
a = torch.randn(512, 512, generator=torch.Generator().manual_seed(0)); plain = a @ a
torch.set_float32_matmul_precision("medium")
with plain_arithmetic(a.device):
    assert torch.equal(a @ a, plain)
assert torch.get_float32_matmul_precision() == "medium"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_gradients_are_not_recorded(make_call):
    call = make_call(n=8)
    call.q.requires_grad_()
    assert not attend(PLAIN, call, BF16).out.requires_grad


def test_blocks_of_rows_change_nothing(make_call, monkeypatch):
    call = make_call(n=300, mask="causal")
    whole = {n: attend(RECIPES[n], call, BF16).out for n in ("torch-math", "fa2", "paper-bf16")}
    monkeypatch.setattr(engine, "BLOCK", 1)
    for name, out in whole.items():
        assert torch.equal(out, attend(RECIPES[name], call, BF16).out)


def test_a_recipe_applies_the_scale_once():
    with pytest.raises(UsageError, match="applies the scale twice"):
        Recipe(name="x", doc="", prescale=Prescale("qk"))
    with pytest.raises(UsageError, match="applies the scale nowhere"):
        Recipe(name="x", doc="", logits=Logits("before"))


@pytest.mark.parametrize(
    "change",
    [
        {"tile": Tile(8)},
        {"exponential": Exponential("2")},
        {"normalise": Normalise("block", "reciprocal")},
        {"row_sum": RowSum("before", Accumulator(BF16, order="softmax"))},
    ],
    ids=str,
)
def test_what_torch_softmax_would_not_do_is_done_by_the_sites(change, make_call):
    """Otherwise such a site could be exchanged without any effect."""
    call = make_call(n=40)
    told = replace(RECIPES["torch-math"], output=FP32, **change)
    total = replace(told.row_sum.accumulator, order="library")
    said = replace(told, row_sum=replace(told.row_sum, accumulator=total))
    ours, theirs = attend(told, call, BF16).out, attend(said, call, BF16).out
    assert torch.equal(ours, theirs)
    plain = attend(replace(RECIPES["torch-math"], output=FP32), call, BF16).out
    assert not torch.equal(ours, plain)


def test_what_no_kernel_could_do_is_refused(make_call):
    call = make_call()
    scaled = replace(PLAIN, probabilities=Quantizer(FORMATS["e4m3fn"], "tensor"))
    with pytest.raises(UnsupportedError, match="a tile at a time"):
        attend(scaled, call, BF16)
    with pytest.raises(UnsupportedError, match="no matrix product of e4m3fn"):
        attend(RECIPES["torch-math-reduced"], call, FORMATS["e4m3fn"])


def test_a_tile_rule_takes_the_first_row_that_fits():
    rule = RECIPES["fa2-sm86"].tile
    assert rule.tile(64, causal=True).keys == 128
    assert rule.tile(128, causal=True).keys == 64
    assert rule.tile(128, causal=False).keys == 32
    assert rule.tile(512, causal=False) == rule.tile(256, causal=False)


@pytest.mark.parametrize(
    ("head_dim", "causal", "keys"),
    [(64, True, 128), (64, False, 192), (96, True, 144), (128, True, 128), (128, False, 176),
     (192, False, 112), (256, True, 80)],
)  # fmt: skip
def test_fa3_walks_other_tiles_than_fa2(head_dim, causal, keys):
    three = RECIPES["fa3"].resolved(BF16, head_dim=head_dim, causal=causal)
    two = RECIPES["fa2"].resolved(BF16, head_dim=head_dim, causal=causal)
    assert three.tile.keys == keys
    assert three.tile.direction == "backward"
    words = {"name": "", "doc": "", "source": "", "backward": None}
    assert replace(three, tile=two.tile, **words) == replace(two, **words)


def test_rotation_is_orthogonal_and_the_same_every_time():
    for dim in (1, 2, 64, 48, 80):
        turn = rotation(dim)
        assert (turn @ turn.T - torch.eye(dim, dtype=torch.float64)).abs().max() < 1e-14
        assert torch.equal(turn, rotation(dim))


def test_outliers_hurt_fp8_less_where_blocks_and_rotation_spread_them():
    given = normalise(ATTENTION.parameters, {"seq_len": 512, "inputs": "outliers", "heads": 2})
    problem = ATTENTION.draw(given, FP16, 0)
    exact = ATTENTION.golden(problem)[0]["out"]

    def size(name):
        return (ATTENTION.run(RECIPES[name], problem)[0]["out"] - exact).square().mean().sqrt()

    assert size("fa3-fp8") < size("fa3-fp8-no-rotation") < 2 * size("fp8-per-tensor")
    assert size("fa3-fp8") < 0.7 * size("fp8-per-tensor")


def test_masks_are_the_calls_own(make_call):
    """A boolean mask and the structural mask that it spells give one result."""
    for kind in ("causal", "causal-lower-right", "window:3"):
        call = make_call(n=9, m=12, mask=kind)
        seen = call.mask.dense(call.lengths, call.q.device)
        spelled = replace(call, mask=make_mask("boolean", seen[None, None]))
        assert torch.equal(attend(PLAIN, call, BF16).out, attend(PLAIN, spelled, BF16).out)


@pytest.mark.parametrize("mask", ["none", "causal", "additive"])
@pytest.mark.parametrize("log2e", ["argument", "scale"])
@pytest.mark.parametrize("base", ["e", "2"])
@pytest.mark.parametrize("place", ["after", "fma", "argument", "q", "qk"])
def test_every_place_of_the_scale_is_exact_in_real_arithmetic(place, base, log2e, mask, make_call):
    call = make_call(n=30, mask=mask, spread=2.0)
    before = place in ("q", "qk")
    recipe = replace(
        RECIPES["baseline-fp64"],
        name="placed",
        prescale=Prescale(place if before else "none", FORMATS["fp64"]),
        logits=Logits("before" if before else place, FORMATS["fp64"]),
        exponential=Exponential(base, log2e, argument=FORMATS["fp64"], format=FORMATS["fp64"]),
        normalise=Normalise("end", format=FORMATS["fp64"]),
        tile=Tile(8),
        output=FORMATS["fp64"],
    )
    result, true = attend(recipe, call, FORMATS["fp64"]), golden(call)[0]
    assert (result.out - true.out).abs().max() < 1e-12
    seen = true.lse.isfinite()
    assert torch.allclose(result.lse[seen], true.lse[seen], rtol=1e-12, atol=1e-12)
