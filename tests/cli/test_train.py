"""`roundoff train` as a command, on a tiny workload of a user's."""

import json
import re
from pathlib import Path

import pytest
import torch

TINY = Path(__file__).parent.parent / "training" / "tiny.py"
ARGS = ("train", "--workload", f"{TINY}:build", "--baseline", "torch-math", "--steps", "6",
        "--repeats", "2", "--sampled", "6", "--jobs", "1", "--no-report")  # fmt: skip


def test_tables_and_the_same_again(inside):
    asked = (*ARGS, "--candidate", "fa2@bf16", "--yardsticks", "ulp,rerun", "-o", "run")
    out, err = inside(*asked)
    assert "distance of the weights" in out
    assert "unit = 0" in out
    assert "noise or bias" in out
    assert max(map(len, out.splitlines())) <= 100
    assert "their state is kept in run/state" in err
    again, err = inside(*asked)
    assert again == out
    assert "state is kept" not in err  # nothing was trained


def test_a_candidate_that_changes_nothing_is_said_to_be_zero(inside):
    out, _ = inside(*ARGS, "--candidate", "torch-math", "--yardsticks", "ulp", "-o", "run")
    [row] = [line for line in out.splitlines() if " ulp  " in line and "torch-math" in line]
    assert row.count("candidate = 0") == 3


def test_the_document_is_strict_json(inside, folder):
    asked = (*ARGS, "--candidate", f"{TINY}:doubled", "--yardsticks", "ulp,rerun", "--json",
             "--timing", "--long", "8", "-o", "run")  # fmt: skip
    out, _ = inside(*asked)
    document = json.loads(out)
    assert document["kind"] == "train"
    assert document["repeats"] == 2
    zero = [d["estimate"] for d in document["distances"] if d["arm"] == "rerun"]
    assert set(zero) == {0}
    assert {d["candidate"] for d in document["direct"]} == {f"{TINY}:doubled"}
    assert {u["yardstick"] for u in document["units"]} == {"ulp", "rerun"}
    long = [line for line in folder.lines() if line["training"]["what"] == "long"]
    assert [len(line["log"]["baseline"]) for line in long] == [8]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--candidate", "fa22"), "did you mean 'fa2'"),
        (("--yardsticks", "upl"), "did you mean 'ulp'"),
        (("--workload", "txt"), "did you mean 'text'"),
        (("--steps", "0"), "steps is 0"),
        (("--long", "-1"), "long is -1"),
        (("--jobs", "0"), "--jobs 0: expected at least 1"),
        (("--workload", "mine.py"), "expected mine.py:function"),
        (("--format", "fp8"), "format 'fp8'"),
        (("--device", "tpu"), "device 'tpu'; expected cpu or cuda"),
        (("--candidate", "", "--yardsticks", " ,"), "nothing to train beside the baseline"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(inside, folder, options, says):
    given = dict(zip(options[::2], options[1::2], strict=True))
    asked = ["train", "--workload", f"{TINY}:build", "--steps", "2", "--repeats", "1", "--jobs",
             "1", "--no-report", "-o", "run"]  # fmt: skip
    for name, value in given.items():
        if name in asked:
            asked[asked.index(name) + 1] = value
        else:
            asked += [name, value]
    _, err = inside(*asked, status=2)
    assert says in err
    assert err.strip().count("\n") == 0
    assert not (folder.path / "run").exists()


def test_a_recipe_that_cannot_train_is_told_by_its_repeats(inside):
    _, err = inside(*ARGS, "--candidate", "fa3", "-o", "run", status=2)
    assert "no backward" in err
    assert "Traceback" not in err


def test_an_arm_that_is_zero_in_some_repeats_and_one_named_twice(inside):
    """The patch does something where the bias, drawn from the seed, is above 0."""
    Path("mine.py").write_text(
        "import torch\n"
        "def build(init_seed):\n"
        "    model = torch.nn.Linear(2, 1)\n"
        "    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "    return model, optimizer, [torch.ones(3, 2)], lambda m, x: (m(x) - 1).square().mean()\n"
        "def shift(model):\n"
        "    if float(model.bias.detach()) > 0:\n"
        "        model.register_forward_hook(lambda module, args, out: 2 * out)\n"
    )
    asked = ("train", "--workload", "mine.py:build", "--candidate", "mine.py:shift,mine.py:shift",
             "--yardsticks", "ulp", "--steps", 2, "--jobs", 1, "--no-report")  # fmt: skip
    out, _ = inside(*asked, "--repeats", 4, "-o", "run")
    [row] = [line for line in out.splitlines() if line.startswith(" mine.py:shift   ulp")]
    assert "candidate = 0" in row
    assert re.search(r"mine\.py:shift +0 in [123] of 4", out)


@pytest.mark.parametrize(
    ("name", "loss", "says"),
    [
        ("wide", "loss(model, x).expand(3)", "the loss is a tensor (3,); expected a tens"),
        ("unbound", "loss(model, y)", "NameError: name 'y' is not defined"),
        ("detached", "loss(model, x).detach()", "RuntimeError: element 0 of tensors does"),
    ],
)
def test_a_workload_that_cannot_take_a_step_is_told_before_writing(inside, name, loss, says):
    Path(f"{name}.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(TINY.parent)!r})\n"
        "from tiny import build as whole\n"
        "def build():\n"
        "    model, optimizer, batches, loss = whole()\n"
        f"    return model, optimizer, batches, lambda model, x: {loss}\n"
    )
    _, err = inside("train", "--workload", f"{name}.py:build", "--yardsticks", "ulp", "--steps", 2,
                    "--repeats", 1, "--jobs", 1, "--no-report", "-o", "run", status=2)  # fmt: skip
    assert f"workload '{name}.py:build', first step: {says}" in err
    assert err.strip().count("\n") == 0
    assert not Path("run").exists()


def test_a_repeat_that_fails_is_missing_in_the_verdict(inside, folder):
    """The patch breaks at the third step, where the bias, drawn from the seed, is above 0."""
    Path("mine.py").write_text(
        "import torch\n"
        "def build(init_seed):\n"
        "    model = torch.nn.Linear(2, 1)\n"
        "    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "    return model, optimizer, [torch.ones(3, 2)], lambda m, x: (m(x) - 1).square().mean()\n"
        "def brittle(model):\n"
        "    calls, positive = [], float(model.bias.detach()) > 0\n"
        "    def hook(*_):\n"
        "        calls.append(0)\n"
        "        if positive and len(calls) == 3:\n"
        "            raise ValueError('too brittle')\n"
        "    model.register_forward_pre_hook(hook)\n"
    )
    asked = ("train", "--workload", "mine.py:build", "--yardsticks", "rerun,mine.py:brittle",
             "--steps", 4, "--jobs", 1, "--repeats", 4, "--no-report", "-o", "run")  # fmt: skip
    out, err = inside(*asked, status=2)
    lost = sorted(line["training"]["repeat"] for line in folder.lines() if line["status"] != "ok")
    assert 0 < len(lost) < 4
    names = ", ".join(f"repeat {i}" for i in lost)
    [line] = [line for line in err.splitlines() if "brittle" in line and "again:" not in line]
    assert line == (f"missing in the verdict: {names} (failed): "
                    "arm 'mine.py:brittle', step 3: ValueError: too brittle")  # fmt: skip
    assert f"rel_l2, {4 - len(lost)} of 4 repeats" in out
    document = json.loads(inside(*asked, "--json", status=2)[0])
    assert document["missing"] == [{
        "names": names.split(", "), "status": "failed",
        "error": "arm 'mine.py:brittle', step 3: ValueError: too brittle",
    }]  # fmt: skip


def test_steps_that_loss_scaling_skips_and_samples_that_are_given_up(inside, folder):
    """A loss a hundred times as large overflows in fp16 until its scale has come down."""
    Path("mine.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(TINY.parent)!r})\n"
        "from tiny import build as whole\n"
        "def build():\n"
        "    model, optimizer, batches, loss = whole()\n"
        "    return model, optimizer, batches, lambda model, x: 100 * loss(model, x)\n"
    )
    asked = ("train", "--workload", "mine.py:build", "--format", "fp16", "--candidate", "fa2@bf16",
             "--yardsticks", "rerun,fp32", "--jobs", 1, "--repeats", 1, "--seed", 3)  # fmt: skip
    out, err = inside(*asked, "--steps", 8, "-o", "run", "--json")
    [line] = folder.lines()
    count = {
        arm: sum(not isinstance(at["grad_norm"], float) for at in log)  # "inf", "nan"
        for arm, log in line["log"].items() if arm != "fp32"
    }  # fmt: skip
    assert 0 < count["baseline"] < 8
    assert json.loads(out)["skipped"] == count
    given_up = line["direct"]["fa2@bf16"]["given_up"]
    assert {d["of"]: d["given_up"] for d in json.loads(out)["direct"]} == {"gradient": given_up}
    page = Path("run/report.html").read_text()
    assert "skipped steps" in page
    assert f"Loss scaling skipped steps: {count['fa2@bf16']} of fa2@bf16" in page
    out, _ = inside(*asked, "--steps", 8, "-o", "run", "--no-report")
    [row] = [r for r in out.splitlines() if r.startswith(" baseline ")]
    assert row.split()[-1] == str(count["baseline"])
    assert "given up" in out
    # From a scale of 1 that nothing has learned yet, the only sample is lost.
    out, err = inside(*asked, "--steps", 1, "-o", "short", "--no-report")
    assert "cannot tell: every sample was given up (1)" in err


def test_an_arm_that_becomes_nan_is_told_with_its_step(inside):
    Path("mine.py").write_text(
        "def wild(model):\n"
        "    calls = []\n"
        "    def hook(module, args, out):\n"
        "        calls.append(0)\n"
        "        return out * float('nan') if len(calls) > 2 else out\n"
        "    model.out.register_forward_hook(hook)\n"
    )
    asked = (*ARGS, "--yardsticks", "ulp,mine.py:wild", "--candidate", "fa2@bf16", "-o", "run")
    out, err = inside(*asked)
    assert "mine.py:wild: its loss is NaN from step 3 on in repeat 0, 1 of 2: it diverged" in err
    assert re.search(r" mine\.py:wild .* nan .* to nan", out)
    assert re.search(r" fa2@bf16 +mine\.py:wild .* unit = nan", out)
    document = json.loads(inside(*asked, "--json")[0])
    [wild] = document["broken"]
    assert (wild["arm"], wild["step"], wild["value"]) == ("mine.py:wild", 3, "nan")
    told = {d["step"]: d["loss"] for d in document["losses"] if d["arm"] == "mine.py:wild"}
    assert isinstance(told[2], float)
    assert told[6] == "nan"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_device_that_is_not_here(inside):
    _, err = inside(*ARGS, "--device", "cuda", "--candidate", "fa2", "-o", "run", status=2)
    assert "device 'cuda' is not here" in err
    assert err.strip().count("\n") == 0
    assert not Path("run").exists()


def test_time_and_peak_memory_of_a_step(inside):
    asked = ("train", "--workload", f"{TINY}:build", "--baseline", "torch-math", "--steps", 1,
             "--repeats", 1, "--sampled", 0, "--jobs", 1, "--candidate", "torch-cpu-flash",
             "--yardsticks", "", "--timing", "-o", "run")  # fmt: skip
    out, _ = inside(*asked)
    assert "peak MB" in out
    assert max(map(len, out.splitlines())) <= 100
    page = Path("run/report.html").read_text()
    assert "Time and memory of a step" in page
    [times] = json.loads(inside(*asked, "--json", "--no-report")[0])["step_times"]
    assert all(times[side]["peak"] > 0 for side in ("baseline", "candidate"))
