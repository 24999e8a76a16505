"""`explain` on kernels that the engine knows nothing of, and on those of torch."""

import math
import re

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import roundoff
from roundoff.attribution.emit import declaration, emit
from roundoff.attribution.explain import explain
from roundoff.attribution.residue import Residue, judge, measure_residue, natural
from roundoff.errors import KernelError, UnknownNameError, UsageError
from roundoff.formats import get_format
from roundoff.kernels.user import function_kernel
from roundoff.operators import OPERATORS
from roundoff.operators.protocol import Problem
from roundoff.sites import Accumulator, Exponential
from roundoff.store.json import dumps
from roundoff.subjects import KernelSubject

from .plain import attention_of, drawn, truth, undecidable

ATTENTION = OPERATORS["attention"]
QUICK = 4, 5, 13  # benchmarks/independent.py takes as many as one likes


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def hurried(monkeypatch):
    """For kernels that are not in the space: the search soon gives up."""
    monkeypatch.setattr("roundoff.attribution.search.BUDGET", 200)
    monkeypatch.setattr("roundoff.attribution.search.ROUNDS", 1)


@pytest.mark.slow
def test_kernels_written_independently_are_seen_through():
    """At least 95 % of the decidable places, and none that cannot be decided called certain."""
    asked, right = 0, 0
    for seed in QUICK:
        choices = drawn(seed)
        sites, said, open_ = (
            explain(attention_of(choices)).sites,
            truth(choices),
            undecidable(choices),
        )
        for name, choice in said.items():
            if name in open_:
                assert sites[name].confidence != "certain", (choices, name)
            else:
                asked += 1
                right += sites[name].choice == choice
                assert sites[name].choice == choice or sites[name].confidence != "certain"
    assert right >= 0.95 * asked


def test_torch_cpu_flash():
    found = explain("torch-cpu-flash")
    assert found.described == "torch-cpu-flash"
    assert found.verdict == "explained by torch-cpu-flash"
    expected = {
        "kv_tile": 512, "probs": "bf16", "row_sum": "before", "exp_base": "e", "scale": "after",
        "accumulator": "fp32", "direction": "forward", "normalise": "end",
        "approximation": "fexp_u20", "maximum": "always", "scores": "fp32",
    }  # fmt: skip
    assert {n: found.sites[n].choice for n in expected} == expected
    # This polynomial's first step is x log2(e): only the exact exp of row tails has a base.
    assert {found.sites[n].confidence for n in expected if n != "exp_base"} == {"certain"}


def test_torch_math():
    found = explain("torch-math")
    assert found.verdict == "explained by torch-math"
    assert found.match == 1.0
    expected = {
        "kv_tile": "row", "probs": "fp32", "exp_base": "e", "scale": "qk", "normalise": "block",
    }  # fmt: skip
    assert {n: found.sites[n].choice for n in expected} == expected
    assert {found.sites[n].confidence for n in expected} == {"certain"}
    # One tile has no direction, and a P that is not cast is added to l as it is.
    assert found.sites["direction"].confidence == "undecidable"
    assert found.sites["row_sum"].confidence == "undecidable"


def test_jax():
    pytest.importorskip("jax")
    found = explain("jax-xla")
    assert found.verdict == "explained by jax-xla"
    expected = {
        "kv_tile": "row", "probs": "bf16", "exp_base": "e", "scale": "after", "normalise": "block",
    }  # fmt: skip
    assert {n: found.sites[n].choice for n in expected} == expected
    assert {found.sites[n].confidence for n in expected} == {"certain"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["paper-bf16"])
def test_a_recipe_run_as_a_black_box_is_found_again(name):
    def emulated(q, k, v):
        return roundoff.emulate(name, q, k, v).out.to(q.dtype)

    found = explain(emulated)
    assert found.described == name
    assert found.match == 1.0


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="the recipe has AVX-512's 16 lanes"
)
def test_softmax_is_explained_by_the_same_code():
    found = explain("torch-softmax", operator="softmax")
    assert found.verdict == "explained by torch"
    assert found.match == 1.0
    assert found.sites["sum"].choice == "fp32"
    assert found.sites["divide"].choice == "reciprocal"


def plain(q, k, v):
    return scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)


def truncated(q, k, v):
    out = scaled_dot_product_attention(q.float(), k.float(), v.float())
    return (out.view(torch.int32) & -65536).view(torch.float32).to(q.dtype)


def noisy(x):
    out = x.float().softmax(-1)
    generator = torch.Generator().manual_seed(x.shape[-1])
    return (out * (1 + 0.03 * torch.randn(out.shape, generator=generator))).to(x.dtype)


@pytest.mark.parametrize(
    ("spoiled", "words"),
    [
        (lambda out: out.index_fill(3, torch.tensor([0]), math.nan), "^broken: 2060 of 131840 "),
        (lambda out: out.index_fill(3, torch.tensor([0]), math.inf), "^broken: 2060 of 131840 "),
        (lambda out: out * 2, "^another result, not rounding: relative error 1; "),
    ],
)
def test_what_is_no_rounded_attention_is_explained_by_nothing(spoiled, words):
    kernel = function_kernel(lambda q, k, v: spoiled(plain(q, k, v)), "attention")
    recipe = ATTENTION.recipes["torch-math"]
    subject = KernelSubject(ATTENTION, kernel)
    residue = measure_residue(subject, recipe, natural(subject, get_format("bf16"), 0))
    assert re.search(words, judge(residue, recipe.name))


def test_nothing_is_certain_of_another_result():
    found = explain(lambda x: 2 * x.softmax(-1), operator="softmax")
    assert found.verdict.startswith("another result")
    assert not found.sites
    assert found.residue.match < 0.5


def test_errors_that_no_recipe_has_are_sized(hurried):
    found = explain(noisy, operator="softmax")
    assert found.verdict.endswith("times larger than any recipe explains")
    assert found.residue.err_ratio > 3


def test_a_kernel_that_does_not_repeat_itself_is_told():
    calls = []

    def shaky(q, k, v):
        calls.append(q.shape)
        out = attention_of(drawn(0))(q, k, v)
        return out + 0.01 * len(calls) if k.shape[2] == 515 else out

    assert explain(shaky).residue.repeats < 0.5


def test_only_what_a_kernel_takes_is_asked_of_it():
    @roundoff.kernel(head_dims=(128,), formats=("fp16",), seq_multiple=128)
    def narrow(q, k, v):
        assert q.shape == k.shape
        assert q.shape[3] == 128
        assert q.shape[2] % 128 == 0
        return plain(q, k, v)

    found = explain(narrow)
    assert found.format.name == "fp16"
    assert found.sites["probs"].choice == "fp32"
    assert found.verdict.startswith("explained by")


def test_a_kernel_that_takes_nothing():
    def none(q, k, v):
        raise ValueError("not today")

    with pytest.raises(KernelError, match="bf16 or fp16 or fp32: raised ValueError: not today"):
        explain(none)
    with pytest.raises(KernelError, match=r"returned out of shape \(1, .*; expected \(1, "):
        explain(lambda q, k, v: plain(q, k, v).mT, format="bf16")


def test_only_shapes_that_are_refused_are_followed_by_others():
    """A kernel that fails is called in the shapes of one probe; one with limits, in all."""
    called = []

    def broken(q, k, v):
        called.append(q.shape)
        raise RuntimeError("no")

    with pytest.raises(KernelError):
        explain(broken, format="bf16")
    assert len(called) == len(ATTENTION.probes(get_format("bf16"), 0)[0].problems)
    found = explain(roundoff.kernel(head_dims=(32,), formats="fp16")(lambda q, k, v: 0 * q))
    assert found.notes == ("not in bf16: format bf16 (takes fp16)",)


@pytest.mark.parametrize("spoil", [torch.zeros_like, lambda x: x * math.nan])
def test_no_recipe_is_looked_for_where_another_thing_is_computed(spoil, monkeypatch):
    monkeypatch.setattr("roundoff.attribution.explain.Search", None)
    found = explain(lambda x: spoil(x.softmax(-1)), operator="softmax")
    assert found.verdict.startswith(("another result, not rounding", "broken: "))
    assert dumps(found.to_record())


def test_a_format_that_was_tried_is_told():
    found = explain(lambda x: x.float().softmax(-1), operator="softmax")
    assert found.format.name == "fp32"
    assert "not in bf16: returned y as torch.float32; expected torch.bfloat16" in found.notes[0]


def test_errors_are_sized_only_where_the_recipe_has_some():
    shares = {"match": 0.5, "null": 0.7, "lift": 0.1, "order_floor": 0.999}
    rest = {"repeats": 1.0, "rel_l2": 0.003, "nonfinite": 0, "elements": 10**6, "example": None}
    sized = {
        ratio: judge(Residue(**shares, err_ratio=ratio, gain=0.0, gain_se=1e-7, **rest), "fa2")
        for ratio in (math.nan, math.inf)
    }
    assert sized[math.nan].startswith("partly explained by fa2")
    assert sized[math.inf] == "not explained: it rounds where fa2 is exact"


def test_names():
    with pytest.raises(UnknownNameError, match="did you mean 'torch-math'"):
        explain("torch-mth")
    with pytest.raises(UsageError, match="is a recipe, which explains itself"):
        explain("recipe:fa2")


@pytest.mark.parametrize(
    ("kernel", "given", "words"),
    [
        (3, {}, "3: expected a function or a name"),
        (None, {}, "None: expected a function or a name"),
        ("torch-math", {"format": "e4m3fn"}, "e4m3fn: the probes come in bf16, fp16, fp32"),
        ("torch-math", {"format": "fp64"}, "golden cannot judge fp64"),
        ("torch-math", {"seed": -1}, "seed -1: expected a whole number from 0"),
        ("torch-math", {"seed": 10**23}, "expected a whole number from 0"),
        ("torch-math", {"threads": 0}, "threads are 0: expected at least 1"),
    ],
)
def test_what_cannot_be_asked(kernel, given, words):
    with pytest.raises(UsageError, match=words):
        explain(kernel, **given)


def test_what_is_cut_off_is_biased_and_what_is_emitted_can_be_run_again(hurried, tmp_path):
    found = explain(truncated)
    assert found.verdict.startswith("biased")
    assert found.residue.gain < -1e-3
    repro, source = emit(found, tmp_path / "repro")
    space = {}
    exec(source.read_text(), space)
    assert space["RECIPE"] == found.recipe
    from safetensors.torch import load_file

    tensors = load_file(repro)
    example = found.residue.example
    format = get_format("bf16")
    inputs = {n: tensors[n].float() for n in "qkv"}
    problem = Problem(inputs, format, ATTENTION.settle({"seq_len": inputs["q"].shape[2]}))
    outputs, _ = ATTENTION.run(found.recipe, problem)
    again = outputs["out"].double().index_select(-2, tensors["rows"])
    assert torch.equal(again, tensors["recipe"])
    kernel = function_kernel(truncated, "attention").run(problem)["out"].double()
    assert torch.equal(kernel.index_select(-2, tensors["rows"]), tensors["kernel"])
    worst = (tensors["kernel"] - tensors["recipe"]).abs().amax()
    assert worst == (example.kernel - example.recipe).abs().amax()


@pytest.mark.parametrize("name", ATTENTION.recipes)
def test_every_recipe_can_be_declared(name):
    space = {}
    exec(declaration(ATTENTION.recipes[name]), space)
    assert space["RECIPE"] == ATTENTION.recipes[name]


def test_a_format_of_ones_own_is_declared():
    recipe = ATTENTION.recipes["fa2"].choose({"pv": Accumulator(get_format("e8m9"))})
    space = {}
    exec(declaration(recipe), space)
    assert space["RECIPE"] == recipe
    assert "Exponential" in declaration(recipe)
    assert Exponential("2", log2e="scale") == recipe.exponential
