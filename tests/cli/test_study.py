"""`roundoff study` where a study makes files of inputs first."""

import json

import pytest
import torch
from safetensors.torch import save_file

from roundoff.bench.plan import Plan, Sweep
from roundoff.errors import UnsupportedError
from roundoff.studies import STUDIES
from roundoff.studies.study import Answer, Claim, Files, Study

AXES = {"heads": "1", "head_dim": "8", "seq_len": "8"}


def plan(**axes):
    given = {"baseline": "torch-math", "recipes": "fa2", "axes": AXES | axes, "seeds": 1}
    return Plan(sweep=(Sweep.model_validate(given),))


def counted(rows):
    return Answer("holds", f"{rows['inputs'].str.startswith('file:').sum()} on files")


@pytest.fixture
def study(monkeypatch):
    """A study whose file is one tensor; what it was asked to make."""
    asked = []

    def make(preset, folder, tell):
        asked.append((preset, folder.name))
        if asked[0] == "no library":
            raise UnsupportedError("it needs a library")
        path = folder / "inputs.safetensors"
        if not path.exists():
            save_file({n: torch.eye(8)[None, None].contiguous() for n in "qkv"}, path)
        tell(1, 1)
        return [path]

    made = Study(
        name="small", source="here", doc="files", presets={"quick": plan},
        claims=(Claim("ALL", "", "", counted),),
        files=Files("a file", make, lambda paths: plan(inputs=f"file:{paths[0]}"),
                    claims=(Claim("FILES", "", "", counted),)),
    )  # fmt: skip
    monkeypatch.setitem(STUDIES._values, "small", made)
    return asked


COMMAND = "study", "small", "--output", "run", "--jobs", 1, "--no-report", "--json"


def claims(out):
    return {c["claim"]: c["measured"] for c in json.loads(out)["claims"]}


def test_files_are_made_measured_and_kept(study, inside, folder):
    out, _ = inside(*COMMAND)
    assert study == [("quick", "run")]
    assert claims(out) == {"ALL": "2 on files", "FILES": "2 on files"}
    assert len(folder.lines()) == 4
    again, _ = inside(*COMMAND)
    assert claims(again) == claims(out)
    assert len(folder.lines()) == 4


def test_a_dry_run_makes_nothing(study, inside, folder):
    out, err = inside("study", "small", "--output", "run", "--dry-run", "--json")
    assert json.loads(out)["cells"] == 2
    assert "and cells on a file, which are made first" in err
    assert study == []
    assert not (folder.path / "run").exists()


def test_without_training_nothing_is_made(study, inside):
    out, _ = inside(*COMMAND, "--no-training")
    assert claims(out) == {"ALL": "0 on files"}
    assert study == []


def test_a_missing_library_leaves_out_what_needs_it(study, inside):
    study.append("no library")
    out, err = inside(*COMMAND)
    assert claims(out) == {"ALL": "0 on files"}
    assert [line for line in err.splitlines() if "left out" in line] == [
        "left out: FILES: it needs a library"
    ]
