"""`roundoff bench` from the command line to the lines on the disk."""

import json
from collections import Counter

SMALL = ("--heads", 1, "--head-dim", 8, "--seq-len", "8,16", "--seeds", 2, "--jobs", 1)
ONE_SEED = ("--heads", 1, "--head-dim", 8, "--seq-len", "8,16", "--seeds", 1, "--jobs", 1)

KERNELS = """
import os, time, torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

def good(q, k, v):
    print("a kernel may print")
    return sdpa(q, k, v)

def aborts(q, k, v):
    os.abort()

def hangs(q, k, v):
    time.sleep(600)

def raises(q, k, v):
    raise ValueError("no luck [/today]")

def nan(q, k, v):
    return sdpa(q, k, v) * float("nan")

def shape(q, k, v):
    return sdpa(q, k, v)[:, :, 1:]

def dtype(q, k, v):
    return sdpa(q, k, v).double()

print("a module may print")
"""


def strict(text):
    def refuse(name):
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


def test_kernels_and_recipes_over_lengths(folder):
    command = ("bench", "--kernel", "torch-cpu-flash", "--recipe", "fa2,torch-math,paper-bf16",
               *SMALL, "--timing", "-o", "run")  # fmt: skip
    out, err = folder.run(*command)
    for word in ("torch-math", "fa2", "paper-bf16", "seq_len", "time"):
        assert word in out
    assert "again: roundoff bench" in err
    assert Counter(line["cell"]["kind"] for line in folder.lines()) == {
        "accuracy": 5 * 2 * 2, "timing": 2 * 2}  # fmt: skip
    assert len(set(folder.done())) == len(folder.lines()) == 24
    environments = {line["environment"] for line in folder.lines()}
    assert {p.stem for p in (folder.path / "run/environments").iterdir()} == environments

    out, err = folder.run(*command, "--json")
    document = strict(out)
    assert (document["schema"], document["kind"], len(document["rows"])) == (1, "bench", 24)
    assert len(folder.lines()) == 24  # nothing was measured again
    assert len(list((folder.path / "run").glob("cells-*"))) == 1


def test_a_kernel_of_the_users_costs_only_itself(folder):
    """One that aborts, hangs, raises, or returns what it should not, beside one that is good."""
    (folder.path / "mine.py").write_text(KERNELS)
    bad = {
        "aborts": "WorkerDiedError: the worker of this cell was killed by signal 6 (SIGABRT)",
        "hangs": "WorkerDiedError: the cell took longer than 8 s and was killed",
        "raises": "KernelError: kernel 'mine.py:raises' raised ValueError: no luck [/today]",
        "shape": "KernelError: kernel 'mine.py:shape' returned out of shape (1, 1, 7, 8); "
                 "expected (1, 1, 8, 8) (is --layout right?)",
        "dtype": "KernelError: kernel 'mine.py:dtype' returned out as torch.float64; "
                 "expected torch.bfloat16, the dtype of its inputs",
    }  # fmt: skip
    names = ",".join(f"mine.py:{name}" for name in ("good", *bad, "nan"))
    out, err = folder.run(
        "bench", "--kernel", names, "--recipe", "fa2", "--heads", 1, "--head-dim", 8, "--seq-len",
        8, "--seeds", 1, "--jobs", 2, "--timeout", 8, "-o", "run", "--json", status=2,
    )  # fmt: skip
    rows = {row["cell"]["candidate"].rpartition(":")[2]: row for row in strict(out)["rows"]}
    assert {n: rows[n]["error"] for n in bad} == bad
    good = ("good", "nan", "fa2", "torch-math")
    assert {rows[n]["status"] for n in good} == {"ok"}
    assert rows["nan"]["outputs"]["out"]["rmse"] == "nan"
    assert rows["good"]["outputs"]["out"]["nan_count"] == 0
    assert "5 cells failed, 0 were skipped" in err
    for name, error in bad.items():
        assert f"failed: kernel:mine.py:{name}: {error}" in err.splitlines()
    assert "Traceback" not in err


def test_a_candidate_that_gave_nothing_is_status_2(folder, inside):
    (folder.path / "mine.py").write_text(KERNELS)
    small = ("--heads", 1, "--head-dim", 8, "--seq-len", 8, "--seeds", 1, "-j", 1, "-o", "run")
    inside("bench", "--kernel", "mine.py:good", *small)
    _, err = inside("bench", "--kernel", "mine.py:good,mine.py:shape", *small, status=2)
    [line] = [line for line in err.splitlines() if "mine.py:shape'" in line]
    assert line.startswith("failed: kernel:mine.py:shape: KernelError: ")
    assert line.endswith("(is --layout right?)")


def test_what_is_not_taken_is_status_2_only_if_nothing_is(folder, inside):
    small = ("--heads", 1, "--head-dim", 8, "--seq-len", 8, "--seeds", 1, "-j", 1, "-o", "run")
    inside("bench", "--recipe", "fa2", "--kernel", "torch-math-reduced", *small, "--format", "fp32")
    none = ("bench", "--baseline", "torch-math-reduced", *small, "--format", "fp32")
    for _ in range(2):  # also where the run has it already
        inside(*none, status=2)


def test_a_damaged_line_is_told_with_its_place(folder, inside):
    command = ("bench", *SMALL, "-o", "run")
    inside(*command)
    (folder.path / "run" / "cells-edited.jsonl").write_text('{"schema": 1, "id": \n')
    _, err = inside(*command)
    assert any(
        line.startswith("roundoff: cells-edited.jsonl:1: not strict JSON")
        for line in err.splitlines()
    )


def test_an_edited_kernel_is_measured_again(folder):
    command = ("bench", "--kernel", "mine.py:f", *ONE_SEED, "-o", "run")
    source = "import helper\nimport torch\ndef f(q, k, v):\n    return helper.g(q, k, v)\n"
    helper = (
        "from torch.nn.functional import scaled_dot_product_attention as sdpa\n"
        "def g(q, k, v):\n    return sdpa(q, k, v){}\n"
    )
    (folder.path / "mine.py").write_text(source)
    (folder.path / "helper.py").write_text(helper.format(""))
    folder.run(*command)
    assert len(folder.lines()) == 4
    (folder.path / "helper.py").write_text(helper.format(" * 1.5"))
    out, _ = folder.run(*command, "--json")
    assert len(folder.lines()) == 4 + 2  # the kernel's own cells, and not the baseline's
    edited = [r for r in strict(out)["rows"] if r["cell"]["candidate"] == "kernel:mine.py:f"]
    assert len(edited) == 2
    assert all(r["outputs"]["out"]["gain"] > 0.4 for r in edited)


def test_a_dry_run_shows_the_plan_and_does_nothing(folder, inside):
    command = ("bench", "--recipe", "fa2", *SMALL, "-o", "run", "--dry-run")
    out, _ = inside(*command)
    assert "8 cells" in out
    assert "about 1 second on one core" in out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "seq_len 8, 16" in lines
    assert "seed 0, 1" in lines
    assert "head_dim" not in out  # which is 8 everywhere
    document = strict(inside(*command, "--json")[0])
    assert document["cells"] == 8
    assert document["operations"] > 0
    assert {c["candidate"]: c["cells"] for c in document["candidates"]} == {
        "kernel:torch-math": 4, "recipe:fa2": 4}  # fmt: skip
    assert document["axes"] == {"seq_len": [8, 16], "seed": [0, 1]}
    assert document["seconds"] > 0
    assert len({(c["candidate"], c["seed"], c["params"]["seq_len"])
                for c in document["planned"]}) == 8  # fmt: skip
    assert not (folder.path / "run").exists()


def test_shards_complete_the_plan(folder, inside):
    command = ("bench", "--recipe", "fa2,paper-bf16", *SMALL, "-o", "run")
    inside(*command, "--shard", "1/2")
    first = folder.done()
    assert 0 < len(first) < 12
    inside(*command, "--shard", "2/2")
    assert len(folder.done()) == len(set(folder.done())) == 12


def test_a_toml_plan_with_two_operators(folder, inside):
    (folder.path / "plan.toml").write_text("""
        [[sweep]]
        baseline = "torch-math"
        recipes = ["fa2"]
        seeds = 1
        axes = {seq_len = "8:16:x2", heads = 1, head_dim = 8}

        [[sweep]]
        operator = "softmax"
        baseline = "torch-softmax"
        seeds = 1
        axes = {rows = 2, length = 16}
    """)
    out, _ = inside("bench", "plan.toml", "-o", "run", "-j", 1, "--json")
    assert Counter(row["cell"]["operator"] for row in strict(out)["rows"]) == {
        "attention": 4, "softmax": 1}  # fmt: skip
