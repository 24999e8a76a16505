"""Whatever is wrong with a command: status 2, one line that says so, and nothing written."""

import os
import resource
import sys

import pytest
import torch
from safetensors.torch import save_file

from roundoff.cli import main

SMALL = ("--heads", "1", "--head-dim", "8", "--seq-len", "8", "--seeds", "1", "--jobs", "1")
BAD_PLAN = '[[sweep]]\nbaseline = "torch-mth"\nseeds = 0\n[sweep.axes]\nmask = "causl"\n'

BAD = {
    # what is asked for: part of the message
    "--kernel torch-cpu-flsh": "unknown kernel 'torch-cpu-flsh'; did you mean 'torch-cpu-flash'",
    "--baseline torch-mth": "unknown kernel 'torch-mth'; did you mean 'torch-math'",
    "--recipe fa22": "unknown recipe 'fa22'; did you mean 'fa2'",
    "--recipe fa2~reorderd": "unknown recipe 'fa2~reorderd'",
    "--format bf15": "unknown format 'bf15'; did you mean 'bf16'",
    "--format e9m99": "does not fit in float64",
    "--operator attenton": "unknown operator 'attenton'; did you mean 'attention'",
    "--sq-len 8": "unknown parameter 'sq_len'; did you mean 'seq_len'",
    "--mask causl": "--mask 'causl': expected one of none, causal",
    "--mask window:0": "--mask 'window:0': expected one of",
    "--inputs norml": "--inputs 'norml': expected one of normal",
    "--inputs normal:x": "--inputs 'normal:x': expected a number",
    "--inputs file:nowhere": "cannot read the inputs 'nowhere': No such file",
    "--head-dim 0": "--head-dim '0': expected a whole number of at least 1",
    "--head-dim -4": "--head-dim '-4': expected a whole number of at least 1",
    "--seq-len abc": "--seq-len 'abc': expected a whole number",
    "--seq-len 8:4:x2": "never reaches its end; expected start < stop",
    "--seq-len 8:16:x1": "never reaches its end",
    "--seq-len 1:99999:+1": "more than 10000 values",
    "--scale nan": "--scale 'nan': expected a finite number",
    "--seeds 0": "--seeds: Input should be greater than or equal to 1",
    "--seeds two": "unable to convert",
    "--seed -1": "--seed: Input should be greater than or equal to 0",
    "--threads 0": "--threads: Input should be greater than or equal to 1",
    "--layout hsbd": 'Choose from: "bhsd", "bshd"',
    "--seq-multiple 0": "--seq-multiple: Input should be greater than or equal to 1",
    "--device gpu": "unknown device 'gpu'; expected cpu, cuda or cuda:<number>",
    "--device cuda:99": "device 'cuda:99' is not here",
    "--seed 99999999999999999999999": "--seed: Input should be less than or equal to 46",
    "--jobs 0": "--jobs 0: expected at least 1",
    "--timeout 0": "--timeout 0: expected seconds above 0",
    "--inputs file:nowhere.safetensors": "cannot read the inputs 'nowhere.safetensors': No such",
    "--inputs file:user.py": "cannot read the inputs 'user.py': ",
    "--inputs file:k.safetensors": "k.safetensors holds no q, v; expected tensors q, k, v",
    "--shard 3/2": "shard '3/2': expected i/n with i from 1 to n",
    "--shard half": "shard 'half': expected i/n",
    "--kernel torch-softmax": "kernel 'torch-softmax' computes softmax, not attention",
    "--kernel nowhere.py:f": "cannot import 'nowhere.py'",
    "--kernel no_module_of_ours:f": "No module named 'no_module_of_ours'",
    "--kernel user.py:goood": "unknown function of user.py 'goood'; did you mean 'good'",
    "--kernel broken.py:f": "cannot import 'broken.py' for 'broken.py:f': SyntaxError",
    "nowhere.toml": "cannot read the plan 'nowhere.toml': No such file",
    "broken.py": "is no TOML",
    "bad.toml": "bad.toml is no plan: sweep.0.baseline: unknown kernel 'torch-mth'",
    "-o user.py": "user.py is no run: expected a folder, found a file",
    "-o user.py/run": "cannot",
    "-o full": "full is no run, and not empty (it has something); name an empty or a new folder",
    "-o /proc/nowhere/run": "cannot create the run",
}


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*")
                  if "__pycache__" not in p.parts)  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "user.py").write_text("def good(q, k, v):\n    return q\n")
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "bad.toml").write_text(BAD_PLAN)
    save_file({"k": torch.zeros(1, 1, 8, 8)}, tmp_path / "k.safetensors")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").write_text("precious")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def complaint(capsys, *arguments):
    """What a command that is refused says, in its one line."""
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    out, err = capsys.readouterr()
    assert ended.value.code == 2, err
    assert out == ""
    assert err.startswith("roundoff: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("asked", BAD)
def test_it_is_refused(place, capsys, asked):
    given = asked.split()
    usual = [a for n in range(0, len(SMALL), 2) if SMALL[n] not in given for a in SMALL[n : n + 2]]
    before = names(place)
    if given[0].endswith((".toml", ".py")):
        usual = []
    output = [] if "-o" in given else ["-o", "run"]
    assert BAD[asked] in complaint(capsys, "bench", *given, *usual, *output)
    assert names(place) == before
    assert (place / "full" / "something").read_text() == "precious"


@pytest.mark.parametrize(
    ("run", "found"),
    [("user.py", "a file"), ("nowhere", "no such folder"), ("full", "an empty or foreign folder")],
)
def test_a_report_of_what_is_no_run(place, capsys, run, found):
    text = complaint(capsys, "report", run)
    assert f"{run} is no run: expected a folder with a manifest.json, found {found}" in text


@pytest.mark.parametrize("output", ["user.py/deeper", "/proc/nowhere"])
def test_a_report_that_cannot_be_written(place, capsys, monkeypatch, output):
    """It is told before the run is read, which may take long."""
    (place / "run").mkdir()
    (place / "run" / "manifest.json").write_text('{"kind": "roundoff run", "schema": 1}')
    monkeypatch.setattr("roundoff.store.Run.rows", lambda run: pytest.fail("was read"))
    text = complaint(capsys, "report", "run", "-o", output)
    assert f"cannot write {output}: " in text


def test_a_study_from_no_seed(place, capsys):
    text = complaint(capsys, "study", "flash-attention", "--seed", "-1")
    assert "seed -1: expected a whole number from 0" in text


def test_a_bad_plan_is_told_whole(place, capsys):
    text = complaint(capsys, "bench", "bad.toml")
    assert "sweep.0.seeds: Input should be" in text
    assert "sweep.0.axes: --mask 'causl'" in text


def test_inputs_of_another_shape(place, capsys):
    save_file({n: torch.zeros(1, 1, 4, 8) for n in "qkv"}, place / "x.safetensors")
    with pytest.raises(SystemExit) as ended:
        main(["bench", *SMALL, "--inputs", "file:x.safetensors", "-o", "run"])
    assert ended.value.code == 2  # not one cell could be measured
    err = " ".join(capsys.readouterr().err.split())
    assert "q has shape (1, 1, 4, 8), but the cell's parameters say (1, 1, 8, 8)" in err
    assert "Traceback" not in err


def test_a_folder_that_cannot_be_written(place, capsys, monkeypatch):
    (place / "locked").mkdir()
    real = os.open

    def refuse(path, flags, *rest, **more):
        if "locked" in str(path) and flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    text = complaint(capsys, "bench", *SMALL, "-o", "locked")
    assert "Permission denied" in text
    assert names(place / "locked") == []


def test_a_damaged_manifest(place, capsys):
    (place / "run").mkdir()
    (place / "run" / "manifest.json").write_text('{"kind": "roundoff ru')
    assert "manifest.json is damaged" in complaint(capsys, "bench", *SMALL, "-o", "run")


def test_a_run_of_a_newer_version(place, capsys):
    (place / "run").mkdir()
    (place / "run" / "manifest.json").write_text('{"kind": "roundoff run", "schema": 99}')
    assert "upgrade with" in complaint(capsys, "bench", *SMALL, "-o", "run")


def test_a_full_disk_loses_nothing(folder):
    """A limit on the size of files stands in for it: the kernel refuses the write half way."""
    plan = ("bench", "--recipe", "fa2,jax-xla", *SMALL[:-4], "--seeds", 3, "--jobs", 1, "-o", "run")

    def little_space():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))

    _, err = folder.run(*plan, status=2, preexec_fn=little_space)
    assert "roundoff: cannot write" in err
    assert "File too large" in err
    assert "Traceback" not in err
    before = folder.done()
    assert 0 < len(before) < 9
    folder.run(*plan)
    assert len(folder.lines()) == len(set(folder.done())) == 9
    assert set(before) < set(folder.done())
