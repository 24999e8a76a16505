"""`roundoff ablate`: the table, the document, the page, and what is refused."""

import pytest

from roundoff.cli import main
from roundoff.report.ablation import bars
from roundoff.store.json import loads

SMALL = ("--heads", 1, "--seq-len", 64, "--head-dim", 16, "--rows", 16, "--seeds", 2,
         "--permutations", 4)  # fmt: skip
KERNEL = """
import torch
def attention(q, k, v):
    return torch.softmax(q.float() @ k.float().mT * q.shape[-1] ** -0.5, -1).bfloat16() @ v
def broken(q, k, v):
    return attention(q, k, v) * float("nan")
"""

BAD = {
    "paper-bf15": "unknown recipe or kernel 'paper-bf15'; did you mean 'paper-bf16'",
    "recipe:fa22": "unknown recipe 'fa22'; did you mean 'fa2'",
    "fa2 --format bf15": "unknown format 'bf15'; did you mean 'bf16'",
    "fa2 --format fp64": "golden is float64 and cannot judge fp64",
    "fa2 --operator attenton": "unknown operator 'attenton'; did you mean 'attention'",
    "fa2 --sq-len 8": "unknown parameter 'sq_len'; did you mean 'seq_len'",
    "fa2 --inputs norml": "--inputs 'norml': expected one of normal",
    "fa2 --tile 0": "--tile '0': expected a whole number of at least 1",
    "fa2 --seeds 0": "--seeds 0",
    "fa2 --seed -1": "seed -1: expected a whole number from 0",
    "fa2 --permutations 5": "expected an even number of at least 2",
    "fa2 --of ot": "unknown output 'ot'; did you mean 'out'",
    "fa2 --recipe fa3": "'fa2' is a recipe already",
    "torch-math --recipe fa33": "unknown recipe 'fa33'",
    "user.py:attention": "has no recipe of its name; say which it follows with --recipe NAME",
    "nowhere.py:f": "cannot import 'nowhere.py'",
    "torch-softmax": "kernel 'torch-softmax' computes softmax, not attention",
    "torch-cpu-flash --format e4m3fn": "kernel 'torch-cpu-flash' does not take format e4m3fn",
    "fa2 -o user.py": "user.py is no folder",
    "fa2 -o user.py/deeper": "cannot write user.py/deeper: Not a directory",
    "user.py:broken --recipe torch-math": "kernel 'user.py:broken' is broken: 64 of 64 elements",
}


@pytest.fixture
def user(folder):
    (folder.path / "user.py").write_text(KERNEL)
    return folder


def test_the_table_is_headed_by_the_verdict(inside):
    out, err = inside("ablate", "paper-bf16", *SMALL)
    first, *lines = out.splitlines()
    assert "causes" in first
    assert first.endswith(".")
    assert all(len(line) <= 100 for line in lines)
    assert any(line.split()[0:1] == ["sum"] and "100 %" in line for line in lines)
    for word in ("restored", "interactions, all sites", "do not round here: q, k, v", "kv_tile"):
        assert word in out
    assert "backward." not in out
    assert "row or 64 and more (the same)" in out  # no tile is longer than the row of 64 keys
    assert err.rstrip().splitlines()[-1].startswith("again: roundoff")


def test_json_is_one_document(inside):
    out, _ = inside("ablate", "fa2-bf16-state", *SMALL, "--of", "out,lse", "--json")
    document = loads(out)
    assert (document["schema"], document["kind"]) == (1, "ablation")
    assert set(document["outputs"]) == {"out", "lse"}
    assert document["parameters"]["rows"] == 16
    assert document["command"].startswith("roundoff")
    for output in document["outputs"].values():
        assert output["closes"] < 1e-9
        parts = sum(site["share"][0] for site in output["sites"])
        assert parts + output["carrier"][0] + output["rest"][0] == pytest.approx(1)


def test_the_page_stands_alone(inside, folder):
    inside("ablate", "paper-bf16", *SMALL, "-o", "ablated")
    found = {path.name for path in (folder.path / "ablated").iterdir()}
    assert found == {"ablation.html", "ablation.json", "ablation.png"}
    page = (folder.path / "ablated" / "ablation.html").read_text()
    assert "causes" in page
    for word in ("http://", "https://", "<script"):
        assert word not in page
    assert (folder.path / "ablated" / "ablation.png").read_bytes()[1:4] == b"PNG"
    document = loads((folder.path / "ablated" / "ablation.json").read_text())
    spec = bars(document["outputs"]["out"])
    shown = [bar["share"] for bar in spec["data"]["values"]]
    assert shown == sorted(shown, reverse=True)
    rounding = [site for site in document["outputs"]["out"]["sites"] if site["rounds"]]
    assert len(shown) == len(rounding) + 1  # the carrier's part


def test_what_stands_in_a_page_is_escaped(inside, folder, user):
    (folder.path / "<b>.py").write_text(KERNEL)
    inside("ablate", "<b>.py:attention", "--recipe", "torch-math", *SMALL, "-o", "ablated")
    page = (folder.path / "ablated" / "ablation.html").read_text()
    assert "<b>" not in page
    assert "&lt;b&gt;.py:attention" in page


def test_a_kernel_of_the_users_through_a_recipe(inside, user):
    out, _ = inside("ablate", "user.py:attention", "--recipe", "torch-math", *SMALL, "--json")
    document = loads(out)
    assert document["subject"] == "kernel:user.py:attention"
    assert document["outputs"]["out"]["unexplained"][0] > 0.2  # it casts P, the recipe does not
    shown, _ = inside("ablate", "user.py:attention", "--recipe", "torch-math", *SMALL)
    assert "not explained" in shown


def test_softmax(inside):
    out, _ = inside("ablate", "sum16-bf16", "--operator", "softmax", "--length", 300, "--rows", 8)
    assert out.startswith("row_sum (the running row sum l) in bf16 causes")


def test_seeds_begin_where_they_are_told_to(inside):
    out, _ = inside("ablate", "fa2", *SMALL, "--seed", 5, "--json")
    assert loads(out)["seeds"] == [5, 6]


@pytest.mark.parametrize("asked", BAD)
def test_it_is_refused(user, monkeypatch, capsys, asked):
    monkeypatch.chdir(user.path)
    with pytest.raises(SystemExit) as ended:
        main(["ablate", *asked.split(), "--heads", "1", "--head-dim", "8", "--seq-len", "8"])
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    assert err.startswith("roundoff: ")
    assert err.count("\n") == 1
    assert BAD[asked] in err
    assert {p.name for p in user.path.iterdir()} <= {"user.py", "__pycache__"}
