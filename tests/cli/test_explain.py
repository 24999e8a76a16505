"""The command `roundoff explain`."""

import json

import pytest
import torch

MINE = """
def attention(q, k, v):
    s = (q.float() @ k.float().mT) * q.shape[-1] ** -0.5
    return (s.softmax(-1) @ v.float()).to(q.dtype)
"""
SITES = {
    "kv_tile", "probs", "row_sum", "exp_base", "scale", "accumulator", "direction", "normalise",
}  # fmt: skip


@pytest.fixture
def mine(folder):
    (folder.path / "mine.py").write_text(MINE)
    return "mine.py:attention"


def test_a_kernel_of_ones_own_as_json(inside, mine, folder):
    out, _ = inside("explain", mine, "--json", "--emit", "repro", "--output", "explained.json")
    document = json.loads(out)
    assert {"schema", "recipe", "sites", "match", "null", "lift", "verdict"} <= document.keys()
    assert document["sites"].keys() >= SITES
    for site in document["sites"].values():
        assert site["confidence"] in ("certain", "likely", "undecidable")
    assert document["sites"]["probs"]["choice"] == "fp32"
    assert document["sites"]["kv_tile"]["choice"] == "row"
    written = {p.name for p in (folder.path / "repro").iterdir()}
    assert written == {"repro.safetensors", "recipe.py"}
    assert json.loads((folder.path / "explained.json").read_text())["verdict"]
    inside(
        "bench", "--kernel", mine, "--inputs", "file:repro/repro.safetensors", "--seq-len", "515"
    )


@pytest.mark.parametrize("option", ["--output", "--emit"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    inside, folder, option, monkeypatch
):
    monkeypatch.setattr("roundoff.cli.explain.explain_subject", None)
    (folder.path / "taken").write_text("")
    asked = ("explain", "torch-softmax", "--operator", "softmax", option)
    for place in ("taken/here", "taken/here/deeper", "." if option == "--output" else "taken"):
        out, err = inside(*asked, place, status=2)
        assert out == ""
        assert err.startswith(f"roundoff: cannot write {place}: ")
        assert err.count("\n") == 1


def test_what_a_kernel_prints_is_not_in_the_document(inside, folder):
    (folder.path / "loud.py").write_text(
        "def softmax(x):\n    print('here I am')\n    return x.softmax(-1)\n"
    )
    out, err = inside("explain", "loud.py:softmax", "--operator", "softmax", "--json")
    assert json.loads(out)["kernel"] == "loud.py:softmax"
    assert "here I am" in err


def test_a_kernel_that_computes_something_else_has_no_table(inside, folder):
    (folder.path / "zero.py").write_text("def softmax(x):\n    return 0 * x.float()\n")
    out, err = inside("explain", "zero.py:softmax", "--operator", "softmax")
    assert out.startswith("zero.py:softmax in fp32: another result, not rounding: ")
    assert out.count("\n") == 1
    assert "not in bf16: returned y as torch.float32" in err
    assert "again: roundoff" in err


def test_the_table(inside):
    out, err = inside("explain", "torch-softmax", "--operator", "softmax")
    # Without AVX-512 torch's softmax has other lanes than its recipe.
    name = "torch" if torch.backends.cpu.get_cpu_capability() == "AVX512" else ""
    assert out.startswith(f"torch-softmax in bf16: explained by {name}")
    assert max(map(len, out.splitlines())) <= 100
    assert "match 100.0000%" in err or not name
    assert "again: roundoff" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["torch-cpu-flsh"], "did you mean 'torch-cpu-flash'"),
        (["missing.py:attention"], "cannot import"),
        (["torch-math", "--format", "bf15"], "did you mean 'bf16'"),
        (["torch-math", "--operator", "softmax"], "computes attention, not softmax"),
        (["torch-math", "--operator", "sofmax"], "did you mean 'softmax'"),
        (["torch-math-reduced", "--format", "fp32"], "took none of the probes in fp32"),
        (["torch-math", "--format", "e4m3fn"], "the probes come in bf16, fp16, fp32"),
        (["torch-math", "--seed", "-1"], "seed -1: expected a whole number from 0"),
        (["torch-mth", "-o", "new/here.json"], "did you mean 'torch-math'"),
    ],
)
def test_bad_input_gives_one_line(inside, folder, arguments, message):
    out, err = inside("explain", *arguments, status=2)
    assert out == ""
    assert message in err
    assert err.strip().count("\n") == 0
    assert not list(folder.path.iterdir())
