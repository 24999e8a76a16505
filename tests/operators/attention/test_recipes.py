"""The contract of every row of the catalogue: a new recipe gets the whole suite."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from roundoff.errors import UsageError
from roundoff.formats import FORMATS, Format
from roundoff.operators.attention.catalogue import RECIPES
from roundoff.operators.attention.engine import attend
from roundoff.operators.attention.golden import golden
from roundoff.operators.attention.operands import rotation
from roundoff.operators.attention.recipe import Tile
from roundoff.operators.exponentials import EXPONENTIALS
from roundoff.sites import Quantizer, reordered, rewritten

BF16 = FORMATS["bf16"]
MASKS = ["none", "causal", "causal-lower-right", "window:5", "boolean", "additive"]
SHAPES = [
    {"heads": 4, "kv_heads": 2},
    {"heads": 3, "kv_heads": 1, "mask": "causal"},
    {"n": 5, "m": 40, "mask": "causal"},
    {"n": 40, "m": 5, "mask": "causal-lower-right"},
    {"d": 8, "dv": 24},
    {"batch": 2, "n": 7},
    {"n": 1},
    {"n": 1, "m": 40},
    {"scale": 0.7},
    {"spread": 2.0, "mask": "causal"},
]
PER_CASE = [{"mask": m} for m in MASKS] + SHAPES


def by_tile(recipe, keys, **more):
    """The recipe in small tiles, so that short sequences have several; whole rows stay whole."""
    tile = recipe.tile
    if not isinstance(tile, Tile):
        tile = tile.tile(16, causal=False)
    return recipe if tile.keys is None else replace(recipe, tile=replace(tile, keys=keys, **more))


def sites_of(name):
    return [site.choice for site in RECIPES[name].sites()]


def exact_everywhere(recipe):
    return recipe.choose({s.name: s.alternatives[0] for s in recipe.sites()})


MOST = 0.45
"""The largest relative L2 error that any test allows; zeros have 1."""


def roundings(recipe, storage):
    """The formats of every site of the resolved recipe, by the site's name."""
    sites = recipe.resolved(storage, head_dim=16, causal=False).sites()
    choices = {s.name: s.choice for s in sites}
    formats = {n: getattr(c, "format", getattr(c, "element", c)) for n, c in choices.items()}
    return {n: f for n, f in formats.items() if isinstance(f, Format)}


def weights(call):
    """S, P over l, and l of all rows in float64; l counts in units of exp(m)."""
    s = (call.q.double() @ shared(call.k, call).double().transpose(-1, -2)) * call.scale
    s = call.mask.apply(s, call.rows, slice(0, call.lengths[1]), call.lengths)
    m = s.amax(-1, keepdim=True)
    p = (s - m.masked_fill(m == -math.inf, 0.0)).exp()
    total = p.sum(-1, keepdim=True)
    return s.masked_fill(p == 0, 0.0), (p / total).nan_to_num(0.0), total


def scale_of(largest, how):
    """A quantiser's scale where the largest magnitude is `largest`, at most."""
    format = how.element
    if how.scales in ("power", "power-up"):
        floor = torch.exp2(torch.frexp(largest)[1].double() - 1 - format.emax)
        return floor if how.scales == "power" else 2 * largest / format.max
    return largest / format.max * (1 + how.scales.unit_roundoff)


def quantised_by(x, how):
    """What a quantiser moves each element of `x` by, at most; 0 where there is none.

    Half the spacing of numbers at the element, also among the smallest ones; or all that is
    beyond the largest number, which counts as three squares since it is no rounding.
    """
    if how is None:
        return torch.zeros_like(x)
    if how.scale in ("none", "fixed"):
        scale = torch.ones_like(x)
    elif how.scale == "tensor":
        scale = scale_of(x.abs().max(), how).expand_as(x)
    else:
        over = (-2, -1) if how.scale == "block" else (how.axis,)
        pieces = x.split(how.block or x.shape[how.axis], how.axis)
        scale = torch.cat(
            [scale_of(p.abs().amax(over, True), how).expand_as(p) for p in pieces], how.axis
        )
    spacing = torch.maximum(how.element.unit_roundoff * x.abs(),
                            scale * how.element.smallest_subnormal / 2)  # fmt: skip
    return torch.maximum(spacing, 3**0.5 * (x.abs() - scale * how.element.max))


def operands(recipe, call):
    """Q and K as a recipe quantises them, and what that moves Q, K and V by."""
    q, k, v = call.q.double(), call.k.double(), call.v.double()
    if recipe.operands.smooth:
        k = k - k.mean(-2, keepdim=True)
    if recipe.operands.rotate:
        q, k = (x @ rotation(x.shape[-1]) for x in (q, k))
    how = recipe.operands
    return q, k, quantised_by(q, how.q), quantised_by(k, how.k), quantised_by(v, how.v)


def smallest_of(how):
    """The smallest number that P can be in, where the largest P of its block is 1."""
    if not isinstance(how, Quantizer):
        return how.smallest_subnormal
    scaled = how.scale in ("tensor", "block", "line")
    one = torch.tensor(1.0, dtype=torch.float64)
    return how.element.smallest_subnormal * (
        float(scale_of(one, how)) if scaled else 1 / how.factor
    )


def exposures(recipe, call, tiles):
    """What a relative error of 1 at a site does: to each weight of P, or (a number) to a row.

    A site at which every tile rounds counts the square root of its roundings. m has no row,
    since a rounded m is taken from S and from the earlier m alike.
    """
    s, p, _ = weights(call)
    q, k, moved_q, moved_k, _ = operands(recipe, call)
    q, k, moved_q, moved_k = (shared(x, call).square() for x in (q, k, moved_q, moved_k))
    product = (q @ k.mT).sqrt() * abs(call.scale)
    from_q, from_k = ((x @ y.mT).sqrt() * abs(call.scale) for x, y in ((moved_q, k), (q, moved_k)))
    down = s.amax(-1, keepdim=True) - s
    biased = 1.5 if call.mask.kind == "additive" else 1.0
    one = torch.ones_like(p)
    sums = s.abs()
    if recipe.qk.aligned:  # each term loses up to two units of the largest
        sums = torch.maximum(sums, 2 * call.q.shape[-1] ** 0.5 * product)
    return {
        "q": from_q, "k": from_k, "prescale": 2 * product, "qk": sums, "scores": s.abs(),
        "logits": biased * s.abs(), "argument": down, "exp": one, "probabilities": one,
        "factor": tiles**0.5, "row_sum": (3 * tiles) ** 0.5, "pv": (3 * tiles) ** 0.5,
        "normalise": 1.5, "output": 1.0,
    }  # fmt: skip


def allowed(recipe, call, storage):
    """The relative L2 error that the recipe's formats allow, and the error of its LSE.

    To first order an error d of a weight p moves the output by p d (v - o), or by p d v where
    l did not see it (P's cast). Roundings do not know of one another, so that their squares
    add up; one is off by u / sqrt 3 in rms at most, and by 0.42 u where significands are
    spread evenly. Underflow takes no more from P than its format's smallest number. The LSE
    is allowed the sum of all units. A recipe that is half wrong is wrong in any format.
    """
    formats, tiles = roundings(recipe, storage), call.lengths[1] // 8 + 1
    _, p, total = weights(call)
    out = golden(call)[0].out
    v = shared(call.v, call).double()
    apart = torch.cdist(out, v)
    resolved = recipe.resolved(storage, head_dim=16, causal=False)
    lost = max(formats["exp"].smallest_subnormal, smallest_of(resolved.probabilities))
    units = {n: f.unit_roundoff for n, f in formats.items()} | {"q": 1, "k": 1, "underflow": lost}
    if isinstance(resolved.probabilities, Quantizer) and resolved.probabilities.scales == "power":
        units["probabilities"] *= 2 * 3**0.5  # the largest of a block may saturate
    units["approximation"] = EXPONENTIALS[resolved.exponential.approximation].relative_error
    sizes = exposures(resolved, call, tiles)
    moved_v = shared(operands(resolved, call)[-1], call)
    from_v = (p.square() @ moved_v.square()).sqrt().norm() / out.norm()
    if resolved.pv.aligned:  # as in `exposures`
        terms = (p.square() @ v.square()).sqrt() * (2 * tiles * 8) ** 0.5
        sizes["pv"] = max(sizes["pv"], float(terms.norm() / out.norm()))
    sizes |= {"approximation": torch.ones_like(p), "underflow": (1 / total / p).nan_to_num(0, 0, 0)}
    squares, log = 1e-26 + float(from_v) ** 2, 1e-12
    for site, size in sizes.items():
        u = units.get(site, 0.0)
        whole = isinstance(size, float)
        distance = v.norm(dim=-1).unsqueeze(-2) if site == "probabilities" else apart
        squares += (u * (size if whole else (p * size * distance).norm() / out.norm())) ** 2
        log += u * (size if whole else (p * size).sum(-1).max())
    return min(MOST, float(squares / 3) ** 0.5), float(log)


def shared(x, call):
    return x.repeat_interleave(call.q.shape[1] // x.shape[1], 1)


def relative(call, out):
    """The L2 error of the whole output over golden's L2 norm: 1 for zeros."""
    reference = golden(call)[0].out
    return ((out - reference).norm() / reference.norm()).item()


def deviation(call, result):
    """The largest error of the output in units of sum p|v|."""
    reference, _ = golden(call)
    unit = golden(replace(call, v=call.v.abs()))[0].out
    return ((result.out - reference.out).abs() / unit.clamp_min(1e-30)).max().item()


@pytest.mark.parametrize("case", PER_CASE, ids=str)
@pytest.mark.parametrize("name", RECIPES)
def test_close_to_golden_within_what_its_formats_allow(name, case, make_call):
    call = make_call(**case)
    recipe = by_tile(RECIPES[name], 12)
    result = attend(recipe, call, BF16)
    error, log_error = allowed(recipe, call, BF16)
    assert result.out.isfinite().all()
    assert relative(call, result.out) <= error <= MOST
    if error < MOST:  # beyond it another key may win, and one output be anything
        assert deviation(call, result) <= 6 * error
    reference = golden(call)[0]
    assert torch.equal(result.lse == -math.inf, reference.lse == -math.inf)
    seen = reference.lse.isfinite()
    off = (result.lse - reference.lse)[seen].abs()
    assert off.numel() == 0 or off.max() <= log_error
    # What the bound is for: outputs with a blunt defect are beyond it.
    assert relative(call, torch.zeros_like(result.out)) > error
    if call.lengths[1] > 1:
        not_normalised = result.out * weights(call)[2].nan_to_num(0.0)
        assert relative(call, not_normalised) > error


@pytest.mark.parametrize("name", RECIPES)
def test_exact_choices_everywhere_give_golden(name, make_call):
    for case in (
        {"spread": 3.0},
        {"mask": "causal", "heads": 4, "kv_heads": 2},
        {"mask": "additive"},
    ):
        call = make_call(**case)
        recipe = exact_everywhere(by_tile(RECIPES[name], 12))
        result = attend(recipe, call, BF16)
        assert result.out.dtype == torch.float64
        assert deviation(call, result) <= 1e-12
        reference = golden(call)[0].lse
        hidden = reference == -math.inf
        assert torch.equal(result.lse == -math.inf, hidden)
        assert ((result.lse - reference)[~hidden].abs() <= 1e-12).all()


@pytest.mark.parametrize("name", RECIPES)
def test_every_alternative_of_every_site_runs(name, make_call):
    """Attribution exchanges one site at a time, in either direction."""
    call = make_call(n=20, mask="additive", heads=1)
    recipe = by_tile(RECIPES[name], 12)
    exact = exact_everywhere(recipe)
    for site in recipe.sites():
        alone = exact.choose({site.name: site.choice})
        assert relative(call, attend(alone, call, BF16).out) <= allowed(alone, call, BF16)[0]
        for choice in site.alternatives:
            other = recipe.choose({site.name: choice})
            result = attend(other, call, BF16)
            error = relative(call, result.out)
            assert error <= allowed(other, call, BF16)[0], (site.name, choice)


@pytest.mark.parametrize("mask", ["boolean", "additive"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_row_that_sees_nothing_gives_zero(name, mask, make_call):
    call = make_call(n=20, mask=mask)
    result = attend(by_tile(RECIPES[name], 12), call, BF16)
    assert (result.out[..., 10, :] == 0).all()
    assert (result.lse[..., 10] == -math.inf).all()
    assert (result.rescales[..., 10] == 0).all()


@pytest.mark.parametrize("name", RECIPES)
def test_sampled_rows_are_the_rows_of_the_whole_bit_for_bit(name, make_call):
    whole = attend(RECIPES[name], make_call(n=150, mask="causal"), BF16)
    for rows in ([3], [0, 149], [5, 17, 18, 90, 91, 120, 149], list(range(0, 150, 3))):
        some = attend(RECIPES[name], make_call(n=150, mask="causal", rows=rows), BF16)
        assert torch.equal(some.out, whole.out[..., rows, :])
        assert torch.equal(some.lse, whole.lse[..., rows])
        assert torch.equal(some.rescales, whole.rescales[..., rows])


@pytest.mark.parametrize("name", RECIPES)
def test_twice_v_is_twice_the_output(name, make_call):
    call = make_call(n=40)
    recipe = by_tile(RECIPES[name], 20)
    once = attend(recipe, call, BF16)
    twice = attend(recipe, replace(call, v=2 * call.v), BF16)
    if roundings(recipe, BF16)["output"].exponent_bits < 5:
        return  # subnormals of e4m3fn are too near
    same = twice.out == 2 * once.out
    tiny = once.out.abs() < max(f.smallest_normal for f in roundings(recipe, BF16).values()) * 4
    assert (same | tiny).all()
    assert torch.equal(once.lse, twice.lse)


@pytest.mark.parametrize("name", RECIPES)
def test_another_order_of_sums_is_near_and_named(name, make_call):
    call = make_call(n=40)
    recipe = by_tile(RECIPES[name], 20)
    other = reordered(recipe)
    assert other.name == f"{name}~reordered"
    result = attend(other, call, BF16)
    assert relative(call, result.out) <= allowed(recipe, call, BF16)[0]


@pytest.mark.parametrize("tensor", ["q", "k", "v"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", RECIPES)
def test_nan_and_infinity_are_not_dropped(name, value, tensor, make_call):
    call = make_call(n=20)
    getattr(call, tensor)[0, 1, 3, 2] = value
    out = attend(by_tile(RECIPES[name], 12), call, BF16).out
    lost = ~golden(call)[0].out.isfinite()
    assert lost.any()
    assert not out[lost].isfinite().any()
    if not any(isinstance(q, Quantizer) and q.scale == "tensor" for q in sites_of(name)):
        assert out[0, 0].isfinite().all()


@pytest.mark.parametrize("name", RECIPES)
def test_huge_logits_give_no_nan(name, make_call):
    if min(f.max for f in roundings(RECIPES[name], BF16).values() if f.infinities) < 1e6:
        pytest.skip("scores this large are infinite in its formats")
    for spread in (30.0, 100.0):
        call = make_call(n=20, spread=spread, mask="causal")
        call = replace(call, v=make_call(n=20).v)
        result = attend(by_tile(RECIPES[name], 12), call, BF16)
        assert result.out.isfinite().all()
        assert (result.out.abs().amax(-1) <= 1.3 * call.v.abs().amax() + 1e-6).all()


@pytest.mark.parametrize("name", RECIPES)
def test_splits_are_joined_through_their_lse(name, make_call):
    recipe = RECIPES[name]
    call = make_call(n=40, mask="causal")
    split = by_tile(recipe, 8, splits=3)
    if split is recipe:
        split = replace(recipe, tile=Tile(splits=3))
    result = attend(split, call, BF16)
    assert result.out.isfinite().all()
    assert relative(call, result.out) <= allowed(recipe, call, BF16)[0]
    assert deviation(call, attend(exact_everywhere(split), call, BF16)) <= 1e-12


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("storage", ["fp16", "fp32", "fp64"])
def test_every_storage_format_is_carried(name, storage, make_call):
    call = make_call(n=20, format=storage, mask="causal")
    recipe = by_tile(RECIPES[name], 12)
    result = attend(recipe, call, FORMATS[storage])
    wide = storage == "fp64" or "fp64" in name
    assert result.out.dtype == (torch.float64 if wide else torch.float32)
    assert relative(call, result.out) <= allowed(recipe, call, FORMATS[storage])[0]


@pytest.mark.parametrize("name", [n for n in RECIPES if RECIPES[n].known == "run"])
def test_recipes_of_float64_kernels_compute_in_float64(name, make_call):
    call = make_call(n=30, format="fp64", mask="causal")
    result = attend(RECIPES[name], call, FORMATS["fp64"])
    theirs = scaled_dot_product_attention(call.q, call.k, call.v, is_causal=True)
    assert (result.out - theirs).abs().max() < 1e-14


@pytest.mark.parametrize("place", ["fma", "argument"])
def test_torch_softmax_leaves_no_place_for_a_scale_that_waits(place):
    with pytest.raises(UsageError, match="never applies the scale"):
        rewritten(RECIPES["torch-math"], {"logits.scale": place, "prescale.operands": "none"})
