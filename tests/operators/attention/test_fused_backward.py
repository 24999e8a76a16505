"""The fast path of the gradients against the readable one: the same bits, for all that it takes."""

import math
from dataclasses import fields, replace

import pytest
import torch

from roundoff.formats import FORMATS
from roundoff.operators.attention import fused_backward
from roundoff.operators.attention.backward import attend_keeping, differentiate
from roundoff.operators.attention.backward_recipe import Backward, Scaled
from roundoff.operators.attention.catalogue import RECIPES
from roundoff.operators.attention.recipe import Exponential, Logits, Prescale, Recipe, Tile
from roundoff.sites import Accumulator

from .paths import CALLS, same_bits

pytest.importorskip("numba", reason="the fast path needs numba")
BF16, FP16, FP32, E4M3 = (FORMATS[n] for n in ("bf16", "fp16", "fp32", "e4m3fn"))
WITH_BACKWARD = [name for name, recipe in RECIPES.items() if recipe.backward is not None]
HOW = replace(RECIPES["fa2"].backward, tile=Tile(48, 40, "backward"), output=FP32)
BASE = replace(RECIPES["fa2"], backward=HOW)


def variant(**changes):
    return replace(BASE, backward=replace(HOW, **changes))


def taken(recipe, storage=BF16):
    recipe = recipe.resolved(storage, head_dim=16, causal=False)
    return fused_backward.takes(recipe.backward.resolved(recipe, storage, head_dim=16, q_len=100))


CASES = [
    *CALLS,
    {"n": 150, "rows": [0, 17, 49, 50, 149]},
    {"n": 60, "heads": 6, "kv_heads": 2, "mask": "boolean"},
    {"n": 97, "m": 41, "heads": 1},  # a last tile of one query, or of one key
    {"n": 49, "m": 81, "d": 1, "dv": 1},
]
VARIANTS = {
    "base": BASE,
    "after, e": variant(logits=Logits("after", BF16), exponential=Exponential()),
    "argument": variant(logits=Logits("argument")),
    "log2e apart": variant(exponential=Exponential("2"), logits=Logits("argument")),
    "prescaled": variant(prescale=Prescale("qk", BF16), logits=Logits("before")),
    "narrow argument": variant(exponential=Exponential("2", argument=FP16, format=E4M3)),
    "coarse lse": variant(lse=E4M3),
    "exact O": variant(delta="exact"),
    "scale onto dS": variant(scaled=Scaled("ds", BF16)),
    "library": variant(dq=Accumulator(BF16), dk=Accumulator(FP16), dv=Accumulator(E4M3)),
    "fused and rounded": variant(
        dk=Accumulator(BF16, order="fused"), dv=Accumulator(FP16, order="fused")
    ),
    "updates": variant(dq=Accumulator(BF16, rounds="update"), dk=Accumulator(rounds="update")),
    "groups together": variant(heads=None),
    "D by lanes": variant(delta_sum=Accumulator(FP32, order="lanes")),
    "tile of one": variant(tile=Tile(1, 50)),
    "tiles forward": variant(tile=Tile(200, 33)),
}


def upstream(call, scale=1.0):
    shape = (*call.q.shape[:2], len(call.rows), call.v.shape[-1])
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * scale
    return drawn.bfloat16().float()


def both(recipe, call, monkeypatch, dout=None, kept=None):
    """Whether the two paths agree, and whether the fast one was really taken."""
    dout = upstream(call) if dout is None else dout
    kept = attend_keeping(recipe, call, BF16)[1] if kept is None else kept
    walked = []
    walk = fused_backward.gradients
    with monkeypatch.context() as patch:
        patch.setattr(fused_backward, "gradients", lambda *a: walked.append(1) or walk(*a))
        fast = differentiate(recipe, call, kept, dout, BF16)
    with monkeypatch.context() as patch:
        patch.setattr(fused_backward, "takes", lambda _: False)
        slow = differentiate(recipe, call, kept, dout, BF16)
    pairs = [(getattr(fast, n), getattr(slow, n)) for n in ("dq", "dk", "dv")]
    return all(same_bits(a, b) for a, b in pairs), bool(walked)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", [n for n in WITH_BACKWARD if taken(RECIPES[n])])
def test_every_recipe_of_the_catalogue(name, case, make_call, monkeypatch):
    agree, _ = both(RECIPES[name], make_call(**case), monkeypatch)
    assert agree


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("label", VARIANTS)
def test_every_choice_at_every_site(label, case, make_call, monkeypatch):
    assert taken(VARIANTS[label])
    agree, walked = both(VARIANTS[label], make_call(**case), monkeypatch)
    assert walked or "spread" in case  # scores that could overflow fp16
    assert agree


@pytest.mark.parametrize("format", ["bf16", "fp16", "tf32", "e4m3fn", "e5m2"])
@pytest.mark.parametrize("site", [s.name for s in BASE.sites() if s.name.startswith("backward.")])
def test_every_format_at_every_site(site, format, make_call, monkeypatch):
    choice = next(s.choice for s in BASE.sites() if s.name == site)
    if not isinstance(choice, Accumulator) and site.split(".")[1] in ("approximation", "delta"):
        pytest.skip("no format")
    format = FORMATS[format]
    chosen = replace(choice, format=format) if isinstance(choice, Accumulator) else format
    agree, walked = both(BASE.choose({site: chosen}), make_call(n=90, d=16), monkeypatch)
    assert walked
    assert agree


def test_the_main_recipes_are_taken():
    names = {n for n in WITH_BACKWARD if taken(RECIPES[n])}
    assert {"fa2", "fa2-sm86", "paper-bf16", "paper-fp16", "failure-bf16"} <= names


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "saved"},
        {"delta": "weights"},
        {"qk": Accumulator(FP32, chunk=16)},
        {"dp": Accumulator(FP32, order="fused")},
        {"dq": Accumulator(FP32, order="fused")},
        {"dk": Accumulator(FP32, order="unordered")},
        {"dv": Accumulator(BF16, rounding="toward-zero")},
        {"scaled": Scaled("products")},
        {"exponential": Exponential("2", log2e="scale", approximation="fexp_u20")},
        {"ds": FORMATS["e4m3fnuz"]},
        {"tile": Tile(None, 8)},
        {"tile": Tile(8)},
    ],
    ids=str,
)
def test_what_it_does_not_know_goes_the_readable_way(change):
    assert not taken(variant(**change))


def test_a_site_that_is_added_later_is_refused_unless_it_says_nothing(monkeypatch):
    monkeypatch.setattr(fused_backward, "_KNOWN", fused_backward._KNOWN - {"ds"})
    fused_backward.takes.cache_clear()
    assert not taken(variant(ds=FP16))
    fused_backward.takes.cache_clear()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("tensor", ["q", "k", "v", "dout"])
def test_nan_and_infinity_go_the_readable_way(tensor, value, make_call, monkeypatch):
    call = make_call(n=70)
    dout = upstream(call)
    (dout if tensor == "dout" else getattr(call, tensor))[0, 0, 3, 2] = value
    agree, walked = both(BASE, call, monkeypatch, dout)
    assert agree
    assert not walked


@pytest.mark.parametrize("lse", [-500.0, 500.0, -math.inf, math.inf, math.nan])
@pytest.mark.parametrize("label", ["base", "after, e"])
def test_another_lse_makes_p_grow_or_vanish(lse, label, make_call, monkeypatch):
    """Gradients may be asked for behind any forward pass: P can be infinite, and dS NaN."""
    call = make_call(n=70)
    _, kept = attend_keeping(BASE, call, BF16)
    kept.lse[0, 0, 5] = lse
    agree, walked = both(VARIANTS[label], call, monkeypatch, kept=kept)
    assert agree
    assert walked == (lse < math.inf)


def test_large_gradients_that_overflow_a_format(make_call, monkeypatch):
    call = make_call(n=70)
    for site in ("backward.dp", "backward.difference", "backward.ds"):
        recipe = BASE.choose({site: Accumulator(FP16) if site == "backward.dp" else FP16})
        agree, walked = both(recipe, call, monkeypatch, upstream(call, 2.0**18))
        assert agree
        assert walked


def test_additive_masks_go_the_readable_way(make_call, monkeypatch):
    assert both(BASE, make_call(n=40, mask="additive"), monkeypatch) == (True, False)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads, make_call):
    call = make_call(n=600, d=64, mask="causal", heads=4)
    recipe = RECIPES["fa2"]
    assert isinstance(recipe, Recipe)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        _, kept = attend_keeping(recipe, call, BF16)
        one = differentiate(recipe, call, kept, upstream(call), BF16)
        torch.set_num_threads(threads)
        many = differentiate(recipe, call, kept, upstream(call), BF16)
    finally:
        torch.set_num_threads(before)
    assert all(same_bits(getattr(one, n), getattr(many, n)) for n in ("dq", "dk", "dv"))


def test_groups_of_heads_change_nothing(make_call, monkeypatch):
    call = make_call(n=300, heads=6, mask="causal")
    for name in ("fa2", "paper-bf16"):
        _, kept = attend_keeping(RECIPES[name], call, BF16)
        whole = differentiate(RECIPES[name], call, kept, upstream(call), BF16)
        with monkeypatch.context() as patch:
            patch.setattr(fused_backward, "HELD", 2**14)
            parts = differentiate(RECIPES[name], call, kept, upstream(call), BF16)
        assert all(same_bits(getattr(whole, n), getattr(parts, n)) for n in ("dq", "dk", "dv"))


def test_the_default_backward_pass_is_not_refused_for_its_fields():
    assert {f.name for f in fields(Backward)} == fused_backward._KNOWN
