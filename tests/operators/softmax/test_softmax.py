"""Softmax: the second operator, against torch, scipy, mpmath and its own laws."""

import math
from dataclasses import replace

import mpmath
import pytest
import torch
from scipy.special import log_softmax

from roundoff.formats import FORMATS
from roundoff.operators.protocol import Problem, normalise
from roundoff.operators.softmax import engine
from roundoff.operators.softmax.catalogue import RECIPES
from roundoff.operators.softmax.engine import soften
from roundoff.operators.softmax.golden import golden, precise
from roundoff.operators.softmax.operator import DISTRIBUTIONS, SOFTMAX, parse_inputs
from roundoff.sites import Accumulator, reordered, resolve

BF16, FP32, FP64 = FORMATS["bf16"], FORMATS["fp32"], FORMATS["fp64"]
AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"


def draw(format="bf16", seed=0, **parameters):
    return SOFTMAX.draw(normalise(SOFTMAX.parameters, parameters), FORMATS[format], seed)


def widest(recipe, storage=BF16):
    sites = [s.choice for s in resolve(recipe, storage).sites() if not isinstance(s.choice, str)]
    formats = [c.format if isinstance(c, Accumulator) else c for c in sites]
    return max(f.unit_roundoff for f in formats), max(f.smallest_subnormal for f in formats)


def exact_everywhere(recipe):
    return recipe.choose({s.name: s.alternatives[0] for s in recipe.sites()})


@pytest.mark.parametrize("inputs", ["normal:3", "peaked", "offset"])
@pytest.mark.parametrize("length", [1, 2, 5, 16, 37, 511, 1000])
def test_golden_against_scipy_and_mpmath(length, inputs):
    x = draw("fp64", rows=3, length=length, inputs=inputs).inputs["x"]
    (y, lse), condition = golden(x)
    theirs = torch.from_numpy(log_softmax(x.numpy(), axis=-1))
    assert (y.log() - theirs).abs().max() < 1e-13
    with mpmath.workdps(50):
        for row, ys, total in zip(x.tolist(), y.tolist(), lse.tolist(), strict=True):
            weights = [mpmath.exp(v) for v in row]
            whole = mpmath.fsum(weights)
            worst = max(abs(a - w / whole) * whole / w for a, w in zip(ys, weights, strict=True))
            assert worst < 1e-14
            assert abs(mpmath.log(whole) - total) <= 1e-14 * max(1.0, abs(total))
    spread = x.amax(-1) - x.amin(-1)
    assert condition == {"logit_max": x.abs().max().item(), "logit_range": spread.max().item()}


def test_precise_is_golden_and_what_float64_left_out():
    x = draw("bf16", rows=2, length=30).inputs["x"]
    (y, lse), (low, low_lse) = precise(x)
    reference, _ = golden(x)
    assert (y - reference[0]).abs().max() < 1e-16
    assert (low != 0).any()
    assert (low.abs() <= y * 2**-53).all()
    assert (lse - reference[1]).abs().max() < 1e-15
    assert (low_lse.abs() <= lse.abs() * 2**-53).all()


@pytest.mark.skipif(not AVX512, reason="the recipe has AVX-512's 16 lanes")
@pytest.mark.parametrize("format", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("inputs", ["normal:3", "peaked", "offset"])
def test_the_torch_recipe_is_torch_bit_for_bit(inputs, format):
    for length in (1, 5, 15, 16, 17, 31, 32, 33, 63, 500, 512, 1001, 4090):
        problem = draw(format, rows=40, length=length, inputs=inputs)
        theirs = torch.softmax(problem.inputs["x"].to(FORMATS[format].dtype), -1)
        ours, _ = SOFTMAX.run(RECIPES["torch"], problem)
        assert torch.equal(ours["y"], theirs.float()), length


@pytest.mark.parametrize("inputs", DISTRIBUTIONS)
@pytest.mark.parametrize("name", RECIPES)
def test_close_to_golden_within_what_its_formats_allow(name, inputs):
    for length in (1, 7, 300):
        problem = draw(rows=9, length=length, inputs=inputs)
        (y, lse), condition = golden(problem.inputs["x"])
        ours, _ = SOFTMAX.run(RECIPES[name], problem)
        u, tiny = widest(RECIPES[name])
        relative = u * (2 * condition["logit_range"] + 8 + 2 * length / 128)
        assert ((ours["y"] - y).abs() <= y * relative + tiny).all()
        assert ((ours["lse"] - lse).abs() <= relative + lse.abs() * 2**-22).all()


@pytest.mark.parametrize("name", RECIPES)
def test_exact_choices_everywhere_give_golden(name):
    x = draw(rows=9, length=300, inputs="normal:3").inputs["x"]
    result = soften(exact_everywhere(RECIPES[name]), x, BF16)
    (y, lse), _ = golden(x)
    assert result.y.dtype == torch.float64
    assert ((result.y - y).abs() <= 1e-13 * y).all()
    assert (result.lse - lse).abs().max() < 1e-13


@pytest.mark.parametrize("name", RECIPES)
def test_laws(name):
    x = draw("fp32", rows=20, length=300).inputs["x"]
    recipe = RECIPES[name]
    u, _ = widest(recipe, FP32)
    plain = soften(recipe, x, FP32)
    assert ((plain.y >= 0) & (plain.y <= 1 + 4 * u)).all()
    assert (plain.y.double().sum(-1) - 1).abs().max() < 10 * u
    if "bf16" not in name or name.startswith("sum16"):
        x = (x * 2**10).round() / 2**10  # so that adding 2^6 is exact
        shifted = soften(recipe, x + 64.0, FP32)
        again = soften(recipe, x, FP32)
        assert torch.equal(shifted.y, again.y)
        assert torch.equal(shifted.rescales, again.rescales)
    assert torch.equal(soften(recipe, x.flip(0), FP32).y, soften(recipe, x, FP32).y.flip(0))


@pytest.mark.parametrize("name", RECIPES)
def test_special_rows(name):
    inf, nan = math.inf, math.nan
    x = torch.tensor(
        [[-inf] * 4, [0.0, -inf, 0.0, -inf], [0.0, nan, 1.0, 2.0], [inf, 0.0, 1.0, 2.0]]
    )
    result = soften(
        replace(RECIPES[name], tile=2) if RECIPES[name].tile else RECIPES[name], x, FP32
    )
    assert result.y[0].tolist() == [0.0] * 4
    assert result.lse[0] == -inf
    assert result.y[1].tolist() == [0.5, 0.0, 0.5, 0.0]
    assert result.y[2:].isnan().all()
    assert result.lse[2:].isnan().sum() >= 1
    (y, lse), _ = golden(x)
    assert y[:2].tolist() == [[0.0] * 4, [0.5, 0.0, 0.5, 0.0]]
    assert lse[0] == -inf
    assert y[2:].isnan().all()
    for empty in (torch.zeros(0, 4), torch.zeros(3, 0)):
        assert soften(RECIPES[name], empty, FP32).y.shape == empty.shape
        assert golden(empty)[0][0].shape == empty.shape


def test_rescales_are_the_rises_of_the_running_maximum():
    x = draw("fp32", rows=50, length=300).inputs["x"]
    result = soften(replace(RECIPES["online"], tile=32), x, FP32)
    tops = torch.stack([t.amax(-1) for t in x.split(32, -1)], -1).cummax(-1).values
    assert torch.equal(result.rescales, (tops[:, 1:] > tops[:, :-1]).sum(-1).float())
    rise = (tops[:, -1] - tops[:, 0]) / math.log(2)
    assert torch.allclose(result.rescaled_by, rise, atol=1e-5)
    assert (soften(RECIPES["safe"], x, FP32).rescales == 0).all()


def test_a_narrow_running_sum_is_the_cause():
    """The sum's format, not the tiles, makes sum16-bf16 worse."""
    problem = draw("fp32", rows=50, length=4096)
    (y, _), _ = golden(problem.inputs["x"])

    def size(recipe):
        return ((SOFTMAX.run(recipe, problem)[0]["y"] - y) / y).square().mean().sqrt().item()

    narrow = RECIPES["sum16-bf16"]
    assert size(RECIPES["online"]) < 2e-7
    assert size(narrow) > 1e-3
    assert size(RECIPES["sum16-fp16"]) < size(narrow) / 3
    assert size(narrow.choose({"row_sum": Accumulator(FP64)})) < 2e-7


def test_the_tile_parameter_overrules_the_recipe():
    problem = draw(rows=9, length=300)
    asked = problem.with_parameters(tile=16)
    _, probes = SOFTMAX.run(RECIPES["safe"], asked)
    assert probes["rescales"] > 0
    ours = soften(replace(RECIPES["safe"], tile=16), problem.inputs["x"], BF16)
    assert torch.equal(SOFTMAX.run(RECIPES["safe"], asked)[0]["y"], ours.y)


def test_rows_of_a_problem():
    whole = draw(rows=12, length=40)
    some = Problem(whole.inputs, whole.format, whole.parameters, torch.tensor([1, 5, 11]))
    taken = SOFTMAX.take_rows(SOFTMAX.run(RECIPES["torch"], whole)[0], some)
    ours = SOFTMAX.run(RECIPES["torch"], some)[0]
    assert all(torch.equal(taken[n], ours[n]) for n in taken)
    fewer, _, _ = SOFTMAX.precise(draw(rows=64, length=4000))
    assert 1 <= len(fewer.rows) <= 8


def test_blocks_of_rows_change_nothing(monkeypatch):
    x = draw(rows=40, length=100).inputs["x"]
    whole = soften(RECIPES["torch"], x, BF16)
    monkeypatch.setattr(engine, "BLOCK", 100 * 7)
    assert torch.equal(whole.y, soften(RECIPES["torch"], x, BF16).y)


@pytest.mark.parametrize("name", RECIPES)
def test_another_order_of_the_sum(name):
    x = draw("fp32", rows=30, length=1000).inputs["x"]
    other = soften(reordered(RECIPES[name]), x, FP32)
    u, _ = widest(RECIPES[name], FP32)
    plain = soften(RECIPES[name], x, FP32)
    assert ((other.y - plain.y).abs() <= 20 * u * plain.y).all()


def test_inputs_are_as_described():
    assert torch.equal(draw(seed=3).inputs["x"], draw(seed=3).inputs["x"])
    assert not torch.equal(draw(seed=3).inputs["x"], draw(seed=4).inputs["x"])
    wide = draw("fp32", rows=500, inputs="normal:2").inputs["x"]
    assert wide.std().item() == pytest.approx(2, rel=0.01)
    high = draw("fp32", inputs="offset:100").inputs["x"]
    assert high.mean().item() == pytest.approx(100, abs=0.1)
    top = draw("fp32", rows=300, inputs="peaked:50").inputs["x"].topk(2).values
    assert (top[:, 0] - top[:, 1] > 40).all()
    with pytest.raises(ValueError, match="expected one of normal"):
        parse_inputs("outliers")
