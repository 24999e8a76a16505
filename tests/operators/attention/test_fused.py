"""The fast path against the readable one: the same bits, for all that it takes."""

import math
from dataclasses import replace

import pytest
import torch

from roundoff.formats import FORMATS
from roundoff.operators.attention import fused
from roundoff.operators.attention.catalogue import RECIPES
from roundoff.operators.attention.engine import attend
from roundoff.operators.attention.recipe import (
    Exponential,
    Logits,
    Maximum,
    Prescale,
    Recipe,
    RowSum,
    Tile,
)
from roundoff.operators.attention.steps import Block
from roundoff.sites import Accumulator, Quantizer

from .paths import CALLS, same_bits

pytest.importorskip("numba", reason="the fast path needs numba")
BF16, FP16, FP32, E4M3 = (FORMATS[n] for n in ("bf16", "fp16", "fp32", "e4m3fn"))


def taken(recipe, storage=BF16):
    return fused.takes(recipe.resolved(storage, head_dim=16, causal=False))


TAKEN = [name for name in RECIPES if taken(RECIPES[name])]
CASES = [
    *CALLS,
    {"n": 50, "rows": [0, 17, 49]},
    {"n": 129, "m": 97, "d": 1, "dv": 1},  # a last tile of one key
]
BASE = replace(RECIPES["fa2"], tile=Tile(48), probabilities=FP32, output=FP32)
VARIANTS = {
    "e": replace(BASE, exponential=Exponential()),
    "e, after": replace(BASE, exponential=Exponential(), logits=Logits("after", BF16)),
    "argument": replace(BASE, logits=Logits("argument")),
    "log2e apart": replace(BASE, exponential=Exponential("2"), logits=Logits("argument")),
    "prescaled": replace(BASE, prescale=Prescale("qk", BF16), logits=Logits("before")),
    "narrow argument": replace(BASE, exponential=Exponential("2", argument=FP16, format=E4M3)),
    "after the cast": replace(BASE, probabilities=E4M3, row_sum=RowSum("after")),
    "fixed scale": replace(BASE, probabilities=Quantizer(E4M3, "fixed", factor=448.0)),
    "lazy": replace(BASE, maximum=Maximum("lazy", threshold=2.0)),
    "coarse maximum": replace(BASE, maximum=Maximum(format=E4M3, factor=FP16)),
    "updates": replace(
        BASE,
        pv=Accumulator(BF16, rounds="update"),
        row_sum=RowSum("before", Accumulator(FP16, rounds="update")),
    ),
    "one tile": replace(BASE, tile=Tile()),
    "tile of one": replace(BASE, tile=Tile(1)),
    "wide tile": replace(BASE, tile=Tile(200)),
}


def both(recipe, call, monkeypatch, storage=BF16):
    """What the two paths give, and whether the fast one was really taken."""
    walked = []
    walk = fused.attend
    monkeypatch.setattr(fused, "attend", lambda *a: walked.append(1) or walk(*a))
    fast = attend(recipe, call, storage)
    monkeypatch.setattr(fused, "takes", lambda _: False)
    count = len(walked)
    slow = attend(recipe, call, storage)
    assert len(walked) == count
    monkeypatch.undo()
    return fast, slow, bool(walked)


def agree(fast, slow):
    pairs = [
        (getattr(fast, n), getattr(slow, n)) for n in ("out", "lse", "rescales", "rescaled_by")
    ]
    return all(same_bits(a, b) for a, b in pairs)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", TAKEN)
def test_every_recipe_of_the_catalogue(name, case, make_call, monkeypatch):
    fast, slow, _ = both(RECIPES[name], make_call(**case), monkeypatch)
    assert agree(fast, slow)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("label", VARIANTS)
def test_every_choice_at_every_site(label, case, make_call, monkeypatch):
    assert taken(VARIANTS[label])
    fast, slow, walked = both(VARIANTS[label], make_call(**case), monkeypatch)
    assert walked or "spread" in case  # scores that could overflow fp16
    assert agree(fast, slow)


@pytest.mark.parametrize("format", ["bf16", "fp16", "tf32", "e4m3fn", "e5m2"])
@pytest.mark.parametrize("site", [s.name for s in BASE.sites() if s.name not in "qkv"])
def test_every_format_at_every_site(site, format, make_call, monkeypatch):
    call = make_call(n=80, d=16)
    fmt = FORMATS[format]
    choice = next(s.choice for s in BASE.sites() if s.name == site)
    if isinstance(choice, Accumulator):
        fmt = replace(choice, format=fmt)
    if site == "approximation":
        pytest.skip("no format")
    recipe = BASE.choose({site: fmt})
    fast, slow, walked = both(recipe, call, monkeypatch)
    assert walked
    assert agree(fast, slow)


def test_the_main_recipes_are_taken():
    assert {"fa2", "fa3", "fa2-lazy", "paper-bf16", "paper-fp16", "fa3-fp8"} <= set(TAKEN)


@pytest.mark.parametrize(
    "change",
    [
        {"qk": Accumulator(FP32, chunk=16)},
        {"pv": Accumulator(FP32, order="fused")},
        {"row_sum": RowSum("before", Accumulator(FP32, order="lanes"))},
        {"qk": Accumulator(BF16, rounding="toward-zero")},
        {"maximum": Maximum("tie-safe")},
        {"maximum": Maximum("row")},
        {"exponential": Exponential(approximation="fexp_u20")},
        {"exponential": Exponential(scalar="rounded")},
        {"exponential": Exponential(argument=FORMATS["fp64"])},
        {"tile": Tile(16, splits=2)},
        {"probabilities": Quantizer(E4M3, "tensor")},
        {"probabilities": FORMATS["e4m3fnuz"]},
    ],
    ids=str,
)
def test_what_it_does_not_know_goes_the_readable_way(change):
    assert not taken(replace(BASE, **change))


def test_a_site_that_is_added_later_is_refused_unless_it_says_nothing(monkeypatch):
    monkeypatch.setattr(fused, "_KNOWN", fused._KNOWN - {"output"})
    fused.takes.cache_clear()
    assert not taken(BASE)
    fused.takes.cache_clear()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("tensor", ["q", "k", "v"])
def test_nan_and_infinity(tensor, value, make_call, monkeypatch):
    call = make_call(n=70)
    getattr(call, tensor)[0, 0, 3, 2] = value
    for name in ("fa2", "paper-bf16", "paper-fp16"):
        fast, slow, walked = both(RECIPES[name], call, monkeypatch)
        assert agree(fast, slow)
        assert walked == (tensor == "v")


def test_scores_that_would_overflow_a_format_go_the_readable_way(make_call, monkeypatch):
    call = make_call(n=70, spread=300.0)
    fast, slow, walked = both(RECIPES["paper-fp16"], call, monkeypatch)
    assert agree(fast, slow)
    assert not walked
    assert both(RECIPES["paper-bf16"], call, monkeypatch)[2]


def test_additive_masks_and_scales_below_zero_go_the_readable_way(make_call):
    for given in ({"mask": "additive"}, {"scale": -0.5}, {"scale": 0.0}):
        call = make_call(n=20, **given)
        recipe = BASE.resolved(BF16, head_dim=16, causal=False)
        assert not fused.fits(Block(recipe, call, call.q, call.k, call.v, call.rows))


def test_a_coarse_maximum_that_lets_p_grow(make_call, monkeypatch):
    """Where m is rounded down far below the largest score, exp's argument is high."""
    recipe = replace(BASE, maximum=Maximum(format=E4M3), exponential=Exponential())
    call = make_call(n=70, spread=5.0, scale=1.0)
    fast, slow, walked = both(recipe, call, monkeypatch)
    assert walked
    assert agree(fast, slow)
    assert fast.out.isfinite().all()


@pytest.mark.parametrize("tile", [48, 128, 290])
def test_a_product_added_to_o_by_torch_or_after_it(tile, make_call, monkeypatch):
    recipe, call = replace(BASE, tile=Tile(tile)), make_call(n=300, d=64)
    fast, slow, _ = both(recipe, call, monkeypatch)
    monkeypatch.setattr(fused, "_adds_last", lambda *_: False)
    assert agree(fast, slow)
    assert agree(fast, attend(recipe, call, BF16))


def test_torch_is_not_trusted_to_add_last(monkeypatch):
    """As a library does that begins its sum with O."""
    fused._adds_last.cache_clear()
    in_one = lambda o, p, v: (o + torch.bmm(p.double(), v.double())).float()  # noqa: E731
    monkeypatch.setattr(torch, "baddbmm", in_one)
    assert not fused._adds_last(1, 64, 64, 32, 1)
    fused._adds_last.cache_clear()


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads, make_call):
    call = make_call(n=600, d=64, mask="causal", heads=4)
    recipe = RECIPES["fa2"]
    assert isinstance(recipe, Recipe)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = attend(recipe, call, BF16)
        torch.set_num_threads(threads)
        many = attend(recipe, call, BF16)
    finally:
        torch.set_num_threads(before)
    assert agree(one, many)


def test_groups_of_heads_and_blocks_of_rows_change_nothing(make_call, monkeypatch):
    call = make_call(n=300, heads=6, mask="causal")
    whole = {name: attend(RECIPES[name], call, BF16) for name in ("fa2", "paper-bf16")}
    monkeypatch.setattr(fused, "HELD", 2**14)
    for name, result in whole.items():
        assert agree(result, attend(RECIPES[name], call, BF16))
