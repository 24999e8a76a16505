"""Inputs: what their words promise, the same for a seed, and read from files with care."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from roundoff.errors import UsageError
from roundoff.formats import FORMATS, round_to
from roundoff.operators.attention.distributions import draw
from roundoff.operators.attention.operator import ATTENTION, call_of
from roundoff.operators.attention.parameters import DISTRIBUTIONS, parse_inputs
from roundoff.operators.protocol import normalise

DRAWN = [d for d in DISTRIBUTIONS if not d.startswith("file")]


def given_(**parameters):
    return normalise(ATTENTION.parameters, parameters)


def problem(format="bf16", seed=0, **parameters):
    return ATTENTION.draw(given_(**parameters), FORMATS[format], seed)


@pytest.mark.parametrize("name", DRAWN)
def test_one_seed_one_draw(name):
    small = given_(seq_len=40, inputs=name, mask="additive")
    a, b, c = draw(small, 5), draw(small, 5), draw(small, 6)
    assert a.keys() == {"q", "k", "v", "mask"}
    assert all(torch.equal(a[x], b[x]) for x in a)
    assert not torch.equal(a["q"], c["q"])
    assert all(x.dtype == torch.float64 and x.device.type == "cpu" for x in a.values())


@pytest.mark.parametrize("name", DRAWN)
def test_settings_of_torch_do_not_change_a_draw(name):
    small = given_(seq_len=20, inputs=name, mask="boolean")
    before, default = draw(small, 0), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            after = draw(small, 0)
    finally:
        torch.set_default_dtype(default)
    assert all(torch.equal(before[x], after[x]) for x in before)


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("format", ["bf16", "fp16", "e4m3fn", "fp32", "fp64"])
def test_inputs_are_rounded_once(name, format):
    p = problem(format, seq_len=16, inputs=name)
    exact = draw(p.parameters, 0)
    for x in "qkv":
        assert p.inputs[x].dtype == (torch.float64 if format == "fp64" else torch.float32)
        assert torch.equal(round_to(exact[x], format, overflow="saturate"), p.inputs[x].double())


def test_normal_and_its_scale():
    x = draw(given_(seq_len=2000, inputs="normal:3"), 0)
    for part in (x[n] for n in "qkv"):
        assert part.mean().abs() < 0.03
        assert part.std().item() == pytest.approx(3, rel=0.01)
    zero = draw(given_(seq_len=4, inputs="normal:0"), 0)
    assert not any(zero[n].any() for n in "qkv")


def test_outliers_are_one_in_a_thousand_and_ten_times_as_large():
    x = draw(given_(seq_len=4000, inputs="outliers"), 0)["q"]
    assert x.var().item() == pytest.approx(1 + 100 * 0.001, rel=0.05)
    assert (x.abs() > 6).double().mean().item() == pytest.approx(0.001 * 0.55, rel=0.2)


def test_peaked_gives_one_logit_of_that_height():
    for height, name in ((20.0, "peaked"), (8.0, "peaked:8"), (0.0, "peaked:0")):
        x = draw(given_(seq_len=300, inputs=name, heads=4, kv_heads=2), 0)
        s = x["q"] @ x["k"].repeat_interleave(2, 1).transpose(-1, -2) / 8
        top = s.topk(2).values
        if height == 20.0:
            assert (top[..., 0] - top[..., 1]).mean() > 10
        if height:
            assert top[..., 0].mean().item() == pytest.approx(height, rel=0.15)
        else:
            assert top[..., 0].max() < 8


@pytest.mark.parametrize("length", [1, 2, 7, 40])
def test_tied_rows_have_their_maximum_twice(length):
    p = problem(seq_len=length, inputs="tied")
    s = p.inputs["q"].double() @ p.inputs["k"].double().transpose(-1, -2)
    ties = (s == s.amax(-1, keepdim=True)).sum(-1)
    assert (ties >= 2).double().mean() > (0.9 if length > 7 else 0.4) or length == 1


def test_one_signed_and_offset():
    assert (problem(seq_len=50, inputs="one-signed").inputs["v"] >= 0).all()
    x = draw(given_(seq_len=900, inputs="offset:6"), 0)
    for part in (x[n] for n in "qkv"):
        assert part[:, :, :90].mean().item() == pytest.approx(0.3, abs=0.1)
        assert part[:, :, -90:].mean().item() == pytest.approx(5.7, abs=0.1)


def test_masks_hide_what_they_say():
    seen = draw(given_(seq_len=300, mask="boolean"), 0)["mask"]
    assert seen.dtype == torch.bool
    assert seen.double().mean().item() == pytest.approx(0.75, abs=0.01)
    bias = problem(seq_len=300, mask="additive").inputs["mask"]
    assert (bias == -math.inf).double().mean().item() == pytest.approx(0.125, abs=0.01)
    assert bias[bias.isfinite()].std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("format", ["bf16", "fp16", "e4m3fn"])
def test_hidden_keys_stay_hidden_in_every_format(format):
    bias = problem(format, seq_len=30, mask="additive").inputs["mask"]
    assert (bias == -math.inf).any()


@pytest.mark.parametrize("rows", [1, 5, 39])
def test_sampled_rows_are_drawn_by_the_seed(rows):
    some = problem(seq_len=40, rows=rows)
    assert len(some.rows) == len(set(some.rows.tolist())) == rows
    assert some.rows.tolist() == sorted(some.rows.tolist())
    assert torch.equal(some.rows, problem(seq_len=40, rows=rows).rows)
    assert torch.equal(some.inputs["q"], problem(seq_len=40).inputs["q"])
    assert problem(seq_len=40, rows=40).rows is None


def save(path, **changes):
    tensors = {n: torch.randn(1, 4, 8, 64, dtype=torch.bfloat16) for n in "qkv"} | changes
    save_file({n: t.contiguous() for n, t in tensors.items() if t is not None}, path)
    return tensors


def from_file(path, **parameters):
    return problem(seq_len=8, inputs=f"file:{path}", **parameters)


def test_a_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "inputs.safetensors"
    tensors = save(path, mask=torch.rand(1, 1, 8, 8) < 0.5, other=torch.ones(3))
    plain = from_file(path)
    assert plain.inputs.keys() == {"q", "k", "v"}
    assert all(torch.equal(plain.inputs[n], tensors[n].float()) for n in "qkv")
    masked = from_file(path, mask="boolean")
    assert torch.equal(call_of(masked).mask.tensor, tensors["mask"])
    ATTENTION.run(ATTENTION.recipes["fa2"], masked)
    digest = ATTENTION.content(plain.parameters)["inputs"]
    save(path)
    assert ATTENTION.content(plain.parameters)["inputs"] != digest


def test_infinities_of_a_file_are_kept(tmp_path):
    path = tmp_path / "inputs.safetensors"
    q = torch.randn(1, 4, 8, 64)
    q[0, 0, 0, :3] = torch.tensor([math.inf, -math.inf, math.nan])
    save(path, q=q)
    kept = from_file(path, format="fp16").inputs["q"][0, 0, 0, :3]
    assert kept[0] == math.inf
    assert kept[1] == -math.inf
    assert kept[2].isnan()


BAD = {
    "holds no v": {"v": None},
    "k has shape (1, 4, 9, 64)": {"k": torch.zeros(1, 4, 9, 64)},
    "holds no mask": {},
    "which is not what mask 'boolean' says": {"mask": torch.zeros(1, 1, 8, 8)},
    "mask has shape (8, 8)": {"mask": torch.ones(8, 8, dtype=torch.bool)},
    "mask has shape (1, 3, 8, 8)": {"mask": torch.ones(1, 3, 8, 8, dtype=torch.bool)},
}


@pytest.mark.parametrize("message", BAD)
def test_a_bad_file_says_what_is_wrong(message, tmp_path):
    path = tmp_path / "inputs.safetensors"
    save(path, **BAD[message])
    with pytest.raises(UsageError) as error:
        from_file(path, mask="boolean" if "mask" in message else "none")
    assert message in str(error.value)


def test_a_file_that_is_none(tmp_path):
    path = tmp_path / "inputs.safetensors"
    for _ in range(2):
        with pytest.raises(UsageError, match="cannot read the inputs"):
            from_file(path)
        path.write_bytes(b"not tensors")
    with pytest.raises(UsageError, match="cannot read the inputs"):
        ATTENTION.content(given_(inputs=f"file:{tmp_path}/none"))


@given(st.sampled_from(["normal", "peaked", "offset"]), st.floats(-1e30, 1e30))
def test_a_number_survives_its_spelling(kind, value):
    text = parse_inputs(f"{kind}:{value!r}")
    assert parse_inputs(text) == text
    _, _, rest = text.partition(":")
    assert not rest or float(rest) == value


@pytest.mark.parametrize(
    "text", ["", "normal:x", "normal:nan", "peaked:inf", "tied:3", "file:", "norm"]
)
def test_bad_spellings(text):
    with pytest.raises(ValueError, match=r"expected|takes no number"):
        parse_inputs(text)


@pytest.mark.parametrize("given", [{"heads": 4, "kv_heads": 3}, {"kv_heads": 8}], ids=str)
def test_heads_must_be_shared_evenly(given):
    with pytest.raises(UsageError, match="no multiple of kv_heads"):
        ATTENTION.settle(given)


SAID_TWICE = [
    {"kv_heads": 4},
    {"heads": 2, "kv_heads": 2},
    {"kv_len": 1024},
    {"seq_len": 7, "kv_len": 7},
    {"v_dim": 64},
    {"head_dim": 16, "v_dim": 16},
    {"scale": 0.125},
    {"head_dim": 16, "scale": "0.25"},
    {"rows": 1024},
    {"seq_len": 7, "rows": 5000},
]
DERIVED = ("kv_heads", "kv_len", "v_dim", "scale", "rows")


@pytest.mark.parametrize("given", SAID_TWICE, ids=str)
def test_a_value_that_says_its_default_is_the_default(given):
    others = {name: value for name, value in given.items() if name not in DERIVED}
    assert ATTENTION.settle(given) == ATTENTION.settle(others)


@pytest.mark.parametrize(
    "given",
    [{"kv_heads": 2}, {"kv_len": 7}, {"v_dim": 16}, {"scale": 1.0}, {"rows": 1023},
     {"kv_heads": 1, "kv_len": 9, "v_dim": 8, "scale": -0.5, "rows": 1}],
    ids=str,
)  # fmt: skip
def test_other_values_are_kept_and_settled_once(given):
    settled = ATTENTION.settle(given)
    assert {name: settled[name] for name in given} == given
    assert ATTENTION.settle(settled) == settled


def test_settled_and_spelled_out_parameters_draw_the_same_problem():
    spelled = {"seq_len": 6, "kv_len": 6, "heads": 2, "kv_heads": 2, "v_dim": 64, "rows": 6}
    settled = ATTENTION.settle(spelled)
    a, b = (ATTENTION.draw(p, FORMATS["bf16"], 0) for p in (settled, given_(**spelled)))
    assert all(torch.equal(a.inputs[x], b.inputs[x]) for x in "qkv")
    assert torch.equal(call_of(a).rows, call_of(b).rows)


@pytest.mark.parametrize(("name", "times"), [("tied-peak", 2), ("tied-one-signed:3", 3)])
def test_tied_peaks_are_tied_bit_for_bit_and_far_out(name, times):
    p = problem(seq_len=240, heads=2, kv_heads=1, inputs=name)
    q, k, v = (p.inputs[n].double() for n in "qkv")
    s = q @ k.repeat_interleave(2, 1).mT / 8
    top, at = s.topk(times + 1, -1)
    assert (top[..., 0] == top[..., times - 1]).all()
    assert (at[..., :times].amax(-1) - at[..., :times].amin(-1) == times - 1).all()
    assert (top[..., 0] - top[..., times]).median() > 12
    assert (v <= 0).all() == name.startswith("tied-one-signed")


def test_one_peak_is_not_tied():
    p = problem(seq_len=240, inputs="tied-one-signed:1")
    s = p.inputs["q"].double() @ p.inputs["k"].double().mT
    top = s.topk(2, -1).values
    assert (top[..., 0] > top[..., 1]).all()
