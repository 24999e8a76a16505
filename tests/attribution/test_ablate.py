"""`ablate` on real recipes: against brute force, against metrics, and where its parts are known."""

import dataclasses
import itertools
import math
import re

import pytest
import torch

from roundoff.attribution.ablate import ablate
from roundoff.errors import GoldenError, KernelError, UnknownNameError, UnsupportedError, UsageError
from roundoff.formats import FORMATS, get_format
from roundoff.kernels.kernel import Kernel
from roundoff.metrics import measure_deviation
from roundoff.operators import OPERATORS
from roundoff.operators.attention.catalogue import RECIPES
from roundoff.operators.attention.recipe import Prescale
from roundoff.operators.protocol import Answer, Question
from roundoff.sites import Accumulator
from roundoff.store.json import dumps, loads

SMALL = {"heads": 2, "seq_len": 96, "head_dim": 16}
SOFTMAX = OPERATORS["softmax"]
ATTENTION = OPERATORS["attention"]
FP64 = FORMATS["fp64"]


def small(subject, **rest):
    given = {"parameters": SMALL, "rows": 32, "seeds": 2, "permutations": 4, "questions": ()}
    return ablate(subject, **{**given, **rest})


def problems(operator, found):
    storage = get_format(found.format)
    return [operator.draw(found.parameters, storage, seed) for seed in found.seeds]


def squares(operator, recipe, problem, output):
    """sum e^2 by plain arithmetic, with float64 as the carrier."""
    wide = {n: x.double() for n, x in problem.inputs.items()}
    ran = operator.run(recipe, dataclasses.replace(problem, inputs=wide))[0][output]
    return (ran.double() - operator.golden(problem)[0][output]).square().sum().item()


def exactly(recipe, but):
    """The recipe with every site in fp64 but those named; written out for softmax."""
    plain = dict.fromkeys(("argument", "exp", "maximum", "factor", "normalise", "output"), FP64)
    every = plain | {"row_sum": Accumulator(FP64), "approximation": "exact"}
    return recipe.choose({name: choice for name, choice in every.items() if name not in but})


def test_brute_force_over_all_orders_of_a_softmax():
    """All 8 sites, the idle ones too, over the orders of the 5 that can round: by definition."""
    parameters = {"length": 48}
    found = ablate(
        "all-bf16", operator="softmax", parameters=parameters, rows=6, seeds=1, questions=()
    )
    [problem] = problems(SOFTMAX, found)
    recipe = SOFTMAX.recipes["all-bf16"]
    sites = ("argument", "exp", "row_sum", "normalise", "output")
    idle = ("maximum", "factor")  # the maximum of bf16 inputs is a bf16, and there is one tile
    value = {
        frozenset(c): squares(SOFTMAX, exactly(recipe, {*c}), problem, "y")
        for n in range(6)
        for c in itertools.combinations(sites, n)
    }
    own = SOFTMAX.run(recipe, problem)[0]["y"]
    total = (own.double() - SOFTMAX.golden(problem)[0]["y"]).square().sum().item()
    orders = list(itertools.permutations(sites))
    shares = found.outputs["y"].shares
    for site in sites:
        added = [
            value[frozenset(o[: o.index(site) + 1])] - value[frozenset(o[: o.index(site)])]
            for o in orders
        ]
        assert shares[site].estimate == pytest.approx(sum(added) / len(orders) / total, rel=1e-9)
    assert found.permutations == 0
    assert [s.name for s in found.outputs["y"].sites if not s.rounds] == ["approximation", *idle]
    parts = {s.name: s for s in found.outputs["y"].sites}
    everyone = frozenset(sites)
    for at, site in enumerate(sites):
        one = frozenset({site})
        effects = {
            "alone": value[one] - value[frozenset()],
            "restored": value[everyone] - value[everyone - one],
            "left": value[frozenset(sites[at + 1 :])],
        }
        for name, expected in effects.items():
            estimate = getattr(parts[site], name).estimate
            assert estimate == pytest.approx(expected / total, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(
    "name", ["paper-bf16", "fa2", "torch-math-reduced", "jax-xla", "fa3-fp8", "paper-bf16-tie-safe"]
)
def test_the_parts_add_up_to_the_error_that_metrics_see(name):
    found = small(f"recipe:{name}")
    out = found.outputs["out"]
    assert out.closes < 1e-12
    assert abs(out.rest.estimate) < 1e-12
    sums = []
    for problem in problems(ATTENTION, found):
        golden = ATTENTION.golden(problem)[0]["out"]
        x = ATTENTION.run(RECIPES[name], problem)[0]["out"]
        sums.append(measure_deviation(golden, x, format=problem.format, cluster_dims=2))
    assert out.rmse.estimate == pytest.approx(sum(d.rmse for d in sums) / 2, rel=1e-12)
    assert out.gain.estimate == pytest.approx(sum(d.gain for d in sums) / 2, rel=1e-9)
    gains = math.fsum(site.gain.estimate for site in out.sites)
    assert gains == pytest.approx(out.gain.estimate, abs=0.02 * abs(out.gain.estimate) + 1e-7)


def test_a_planted_site_dominates():
    fp8 = FORMATS["e5m2"]
    planted = dataclasses.replace(RECIPES["fa2"], name="planted", probabilities=fp8)
    found = small(planted)
    assert next(iter(found.shares)) == "probabilities"
    assert found.shares["probabilities"].estimate > 0.95
    said = r"probabilities \(P as it enters PV\) in e5m2 causes (9\d|100) % \[\d+, \d+\] of the"
    assert re.match(said, found.verdict)


def test_a_site_that_cuts_off_causes_the_gain():
    """Truncation shrinks; all other sites of the recipe round to nearest."""
    cut = Accumulator(FORMATS["bf16"], rounding="toward-zero")
    planted = dataclasses.replace(RECIPES["paper-bf16"], name="planted", pv=cut)
    found = small(planted, parameters=SMALL | {"inputs": "one-signed", "tile": 16}, seeds=4)
    out = found.outputs["out"]
    assert out.gain.high < 0
    assert out.gain_shares["pv"] == pytest.approx(1.0, abs=0.2)


def test_two_sites_that_round_the_same_share_it():
    """The cast of P over l and the cast of the output: one rounding in two places."""
    only = RECIPES["baseline-fp64"].choose({"output": FORMATS["bf16"]})
    twice = dataclasses.replace(
        only, name="twice", normalise=dataclasses.replace(only.normalise, when="end")
    ).choose({"normalise": FORMATS["bf16"]})
    out = small(twice).outputs["out"]
    sites = {site.name: site for site in out.sites if site.rounds}
    assert set(sites) == {"normalise", "output"}
    for site in sites.values():
        assert site.share.estimate == pytest.approx(0.5, abs=1e-9)
        assert site.alone.estimate == pytest.approx(1.0, abs=1e-9)
        assert site.restored.estimate == 0.0
    assert out.interaction.estimate == pytest.approx(-1.0, abs=1e-9)
    assert out.pairs["normalise", "output"] == out.interaction


def test_a_recipe_of_one_site_and_one_of_none():
    one = RECIPES["baseline-fp64"].choose({"output": FORMATS["bf16"]})
    out = small(one).outputs["out"]
    assert [site.name for site in out.sites if site.rounds] == ["output"]
    assert out.shares["output"].estimate == pytest.approx(1.0, abs=1e-12)
    none = small(one.choose({"output": FP64}))
    assert not any(site.rounds for site in none.outputs["out"].sites)
    assert none.verdict == "no site of the recipe rounds out"
    assert none.outputs["out"].rest.estimate == pytest.approx(1.0)


def test_sums_inside_a_product_are_the_carrier():
    """Everything in fp32, on fp32 inputs: most is rounded inside the sums, at no site."""
    found = small("recipe:paper-fp32", format="fp32", parameters=SMALL | {"head_dim": 128})
    assert found.outputs["out"].carrier.estimate > 0.1
    narrow = small("recipe:paper-bf16").outputs["out"].carrier
    assert abs(narrow.estimate) < 0.02


def test_seeds_are_independent_units():
    both = small("fa2-bf16-state", seeds=(3, 5))
    apart = [small("fa2-bf16-state", seeds=(seed,)) for seed in (3, 5)]
    for site, share in both.shares.items():
        mean = sum(one.shares[site].estimate for one in apart) / 2
        assert share.estimate == pytest.approx(mean, abs=1e-12)
    assert both.units == "seeds"
    assert {one.units for one in apart} == {"permutations"}
    assert both.shares["pv"].n == 2


def test_intervals_over_seeds_cover_the_mean_of_all():
    """softmax with 5 sites that round: 4 seeds and 6 permutations each, against all coalitions."""
    given = {"operator": "softmax", "parameters": {"length": 300}, "rows": 8, "questions": ()}
    whole = ablate("all-bf16", permutations=32, seeds=16, **given)
    assert whole.permutations == 0
    active = [site.name for site in whole.outputs["y"].sites if site.rounds]
    inside = 0
    for first in range(0, 16, 4):
        some = ablate("all-bf16", permutations=6, seeds=range(first, first + 4), **given)
        assert some.permutations == 6
        inside += sum(whole.shares[site].estimate in some.shares[site] for site in active)
    assert len(active) == 5
    assert inside >= 17  # of 20


def test_statistics_of_rows_are_taken_apart_when_asked():
    assert list(small("fa2").outputs) == ["out"]
    lse = small("paper-bf16", outputs=["lse"]).outputs["lse"]
    sites = {site.name: site.rounds for site in lse.sites}
    assert sites["row_sum"]
    assert not sites["pv"]
    assert not sites["output"]


def attention(scale):
    """torch's math attention with its output scaled, as a kernel."""

    def bind(problem):
        q, k, v = (problem.inputs[n].to(problem.format.dtype) for n in "qkv")

        def call():
            exact = torch.softmax(q.double() @ k.double().mT * q.shape[-1] ** -0.5, -1) @ v.double()
            return {"out": (exact * scale).to(q.dtype)}

        return call

    return Kernel(name="scaled", operator="attention", doc="", bind=bind)


def test_what_a_recipe_does_not_explain_of_a_kernel():
    found = small(attention(1.01), recipe="torch-math")
    out = found.outputs["out"]
    assert found.subject == "kernel:scaled"
    assert out.gain.estimate == pytest.approx(0.01, rel=0.02)
    assert out.unexplained.estimate > 0.9
    assert out.apart.estimate > 0.9
    assert out.closes < 1e-12
    honest = small(attention(1.0), recipe="torch-math").outputs["out"]
    assert abs(honest.unexplained.estimate) < 0.01
    assert honest.apart.estimate < 0.01


def test_a_kernel_that_runs_here_is_explained_by_its_recipe():
    found = small("torch-cpu-flash", parameters=SMALL | {"seq_len": 600})
    assert (found.subject, found.recipe) == ("kernel:torch-cpu-flash", "torch-cpu-flash")
    assert abs(found.outputs["out"].unexplained.estimate) < 0.02


def test_a_function_is_a_kernel():
    def exactly(q, k, v):
        exact = torch.softmax(q.double() @ k.double().mT * q.shape[-1] ** -0.5, -1) @ v.double()
        return exact.to(q.dtype)

    found = small(exactly, recipe="torch-math")
    assert (found.subject, found.recipe) == ("kernel:exactly", "torch-math")
    assert found.outputs["out"].closes < 1e-12


def test_what_is_not_explained_leads_where_it_is_most():
    most = small(attention(1.01), recipe="torch-math").verdict
    assert re.match(r"9\d %.* of the squared error of out is not explained by torch-math; ", most)
    assert "causes" in most
    fine = small(attention(1.0), recipe="paper-bf16").verdict
    assert re.match(r"paper-bf16 has \d.* times the squared error of out, and does not ", fine)
    assert small(attention(1.0), recipe="torch-math").verdict.startswith("output (")


def test_a_broken_kernel_has_no_error_to_take_apart(monkeypatch):
    monkeypatch.setattr("roundoff.attribution.ablate.Coalitions", None)  # told before any run
    with pytest.raises(
        KernelError, match="'scaled' is broken: 1024 of 1024 elements of out are NaN"
    ):
        small(attention(math.nan), recipe="torch-math")


def test_choices_without_an_exact_one_are_swept():
    found = small("paper-bf16", questions=None, seeds=4)
    tiles = {s.answer: s for s in found.swept if s.question == "kv_tile"}
    assert tiles[64].same
    assert tiles[64].ratios["out"].estimate == 1.0
    assert tiles[16].ratios["out"].low > 1.0 > tiles["row"].ratios["out"].estimate
    assert not {"probs", "sum", "scores"} & {s.question for s in found.swept}


def test_the_answers_that_a_recipe_cannot_follow_are_told():
    twice = Question("scale", "", "exponent", (
        Answer("twice", {"prescale": Prescale("q")}),
        Answer("reciprocal", {"normalise.by": "reciprocal"}),
    ))  # fmt: skip
    refused, followed = small("paper-bf16", questions=(twice,)).swept
    assert "applies the scale twice" in refused.refused
    assert not refused.ratios
    assert followed.ratios["out"].estimate > 0


def test_the_record_is_strict_json():
    found = small("paper-bf16", seeds=1, questions=None)
    record = loads(dumps(found.to_record()))
    assert record["verdict"] == found.verdict
    site = next(s for s in record["outputs"]["out"]["sites"] if s["name"] == "pv")
    assert site["share"][0] == found.shares["pv"].estimate
    assert record["parameters"]["rows"] == 32


def test_progress_reaches_its_end():
    told = []
    small("fa2", tell=lambda done, total: told.append((done, total)), questions=None)
    assert all(0 < done <= total for done, total in told)
    assert told[-1][0] > 0.9 * told[-1][1]


BAD = [
    ({"subject": "paper-bf15"}, UnknownNameError, "did you mean 'paper-bf16'"),
    ({"subject": "recipe:fa22"}, UnknownNameError, "'fa2'"),
    ({"subject": "kernel:torch-mth"}, UnknownNameError, "torch-math"),
    ({"subject": "fa2", "recipe": "fa2"}, UsageError, "is a recipe already"),
    ({"subject": "torch-math", "recipe": "fa22"}, UnknownNameError, "'fa2'"),
    ({"subject": attention(1.0)}, UsageError, "--recipe NAME"),
    ({"subject": "fa2", "operator": "attenton"}, UnknownNameError, "attention"),
    ({"subject": "fa2", "format": "fp64"}, GoldenError, "cannot judge fp64"),
    ({"subject": "fa2", "permutations": 3}, UsageError, "even number"),
    ({"subject": "fa2", "seeds": 0}, UsageError, "at least one"),
    ({"subject": "fa2", "seeds": [0, -1]}, UsageError, "seed -1: expected a whole number from 0"),
    ({"subject": "fa2", "seeds": [10**23]}, UsageError, "expected a whole number from 0"),
    ({"subject": lambda q, k, v: q}, UsageError, "'<lambda>' has no recipe of its name"),
    ({"subject": "fa2", "outputs": ["ot"]}, UnknownNameError, "'out'"),
    ({"subject": "fa2", "parameters": {"sq_len": 8}}, UnknownNameError, "seq_len"),
    ({"subject": 3}, UsageError, "cannot ablate a int"),
    ({"subject": "recipe:baseline-fp16", "format": "fp16",
      "parameters": SMALL | {"inputs": "normal:400"}}, UnsupportedError, "NaN or infinities"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "error", "words"), BAD, ids=[words for _, _, words in BAD])
def test_what_cannot_be_is_said_in_one_line(given, error, words):
    given = dict(given)
    with pytest.raises(error, match=words) as caught:
        small(given.pop("subject"), **given)
    assert "\n" not in str(caught.value)
