"""Every sink has what was read, NaN included; what it cannot write costs the sink, not the run."""

import dataclasses
import io
import json
import logging
import math
import os
import random
import re
import resource
import socket
import subprocess
import sys

import pytest
import torch
from torch import nn

from roundoff.errors import MissingLibraryError, RunError
from roundoff.live.monitor import Monitor
from roundoff.live.sinks import JsonLines, RunDirectory, TensorBoard, Terminal, WandB, sink_at
from roundoff.live.watch import Watch
from roundoff.records import Finding, Reading
from roundoff.store import Run
from roundoff.store.json import loads

READINGS = [
    Reading(3, "gradients", "fc.weight", {"norm": math.inf, "nonfinite": 1.0}),
    Reading(3, "gradients", "*", {"norm": math.inf, "nonfinite": 1.0}, pooled=True),
    Reading(3, "attention", "layers.1.attn", {"rmse": 1e-7, "ratio": 1.0}, head=0),
    Reading(3, "attention", "layers.1.attn", {"rmse": math.nan, "ratio": math.nan}, head=1),
    Reading(3, "attention", "layers.1.attn", {"rmse": 1e-3, "ratio": 9e4}, head=2),
]
FINDINGS = [Finding(3, "deviation", "layers.1.attn", "error of out", head=2, values={"ratio": 9e4})]


def alike(a, b):
    return a == b or (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=1e-6)


def filled(sink):
    """Written to, and after it was closed once more, as a second training does."""
    sink.write(3, READINGS, FINDINGS)
    sink.close()
    sink.write(4, [dataclasses.replace(READINGS[0], step=4)], [])
    sink.close()
    sink.close()


def test_lines(tmp_path):
    filled(sink_at(tmp_path / "new" / "live.jsonl"))
    lines = [loads(line) for line in (tmp_path / "new" / "live.jsonl").read_text().splitlines()]
    assert len(lines) == len(READINGS) + 2
    begun = {line.pop("begun"): line["step"] for line in lines}
    assert sorted(begun.items()) == [*begun.items()]  # two trainings can be told apart
    assert [*begun.values()] == [3, 4]
    assert lines[0] == {"step": 3, "of": "gradients", "name": "fc.weight", "pooled": False,
                        "norm": math.inf, "nonfinite": 1.0}  # fmt: skip
    assert lines[3]["head"] == 1
    assert math.isnan(lines[3]["ratio"])
    assert lines[5]["finding"] == "deviation"
    assert (lines[5]["name"], lines[5]["head"]) == ("layers.1.attn", 2)


def test_a_run(tmp_path):
    pytest.importorskip("duckdb")
    filled(sink_at(tmp_path / "run"))
    run = Run.open(tmp_path / "run")
    live = run.sql("select * from live where step = 3")
    assert live["name"].tolist() == [r.name for r in READINGS]
    assert [
        alike(a, b) for a, b in zip(live["ratio"].tolist()[2:], [1.0, math.nan, 9e4], strict=True)
    ]
    assert math.isnan(run.sql("select max(ratio) as m from live")["m"][0])
    found = run.sql("select step, what, name, head, why, values_ratio from findings")
    assert found.values.tolist() == [[3, "deviation", "layers.1.attn", 2, "error of out", 9e4]]
    empty = Run.create_or_open(tmp_path / "empty", manifest={})
    assert empty.sql("select count(*) as n from findings")["n"].tolist() == [0]


def norms(path):
    live = Run.open(path).sql("select step, norm from live where pooled order by step")
    return [*zip(live["step"], live["norm"], strict=True)]


def written(path, steps, norm):
    sink = sink_at(path)
    for step in steps:
        sink.write(step, [Reading(step, "gradients", "*", {"norm": norm}, pooled=True)],
                   FINDINGS if step == 4 else [])  # fmt: skip
    sink.close()


def test_a_training_that_goes_on_stands_for_what_it_does_again(tmp_path, caplog):
    """Whatever the random part of the files' names is."""
    pytest.importorskip("duckdb")
    for i in range(4):
        path = tmp_path / str(i)
        written(path, (0, 2, 4, 6), 1.0)
        written(path, (4, 6), 2.0)
        assert norms(path) == [(0, 1.0), (2, 1.0), (4, 2.0), (6, 2.0)]
    assert len(caplog.records) == 4
    assert "has a training with steps up to 6 already; from step 4 on" in caplog.text
    findings = Run.open(path).sql("select f.begun = l.begun as same from findings f, live l "
                                  "where l.step = 6")  # fmt: skip
    assert findings["same"].tolist() == [True]
    assert len(Run.open(path).read()) == 6  # the lines stay
    caplog.clear()
    written(path, (8,), 2.0)
    assert caplog.records == []
    written(path, (0, 5), 3.0)  # another one, or the same from the beginning: no mixture
    assert norms(path) == [(0, 3.0), (5, 3.0)]


class Draws:
    def write(self, step, readings, findings):
        torch.rand(1)

    def close(self):
        torch.rand(1)
        random.random()


def test_a_sink_that_draws_is_not_noticed():
    states = []
    for to in ((), [Draws()]):
        random.seed(0)
        trained(2, to)
        states.append((torch.get_rng_state().tolist(), random.getstate()))
    assert states[0] == states[1]


def test_nothing_is_written_before_the_first_reading(tmp_path):
    RunDirectory(tmp_path / "new" / "run")
    assert not [*tmp_path.iterdir()]


@pytest.mark.filterwarnings("ignore")
def test_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    filled(TensorBoard(tmp_path / "tb"))
    seen = accumulator.EventAccumulator(str(tmp_path / "tb"))
    seen.Reload()
    for r in READINGS:
        for measure, value in r.values.items():
            event = seen.Scalars(f"{r.of}/{r.place}/{measure}")[0]
            assert event.step == 3
            assert alike(event.value, value)
    assert seen.Scalars("gradients/fc.weight/norm")[1].step == 4
    text = seen.Tensors("findings")[0].tensor_proto.string_val[0].decode()
    assert text == "step 3: layers.1.attn, head 2: error of out"


class Tty(io.StringIO):
    def isatty(self):
        return True


def test_lines_where_there_is_no_terminal():
    file = io.StringIO()
    filled(Terminal(file=file))
    assert file.getvalue().splitlines() == [
        "step 3: gradients norm inf, worst head layers.1.attn[1] no ratio",  # a NaN is worst
        "step 3: layers.1.attn, head 2: error of out",
        "step 4: gradients norm inf",
    ]


def test_a_table_in_a_terminal_stays_in_place(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "70")
    file, before = Tty(), (sys.stdout, sys.stderr)
    sink = Terminal(file=file)
    for step in (3, 4):
        sink.write(step, READINGS, FINDINGS[: step - 3])
    sink.close()
    assert (sys.stdout, sys.stderr) == before
    shown = screen(file.getvalue())
    assert next(line for line in shown if line.startswith("step ")) == "step 4"
    assert sum("tensors" in line for line in shown) == 1
    assert max(map(len, shown)) <= 70
    text = "\n".join(shown)
    assert "gradients   *    norm inf" in text
    assert "fc.weight" not in text  # all are one row
    heads = [line for line in shown if line.startswith(" layers")]
    assert [line.split()[0][-2] for line in heads] == ["1", "2", "0"]  # a NaN is worst
    assert ["in a row" in line for line in heads] == [False, True, False]
    assert "2 in a row" in heads[1]
    assert "found: beyond 4 at 2 samples in a row\n1 finding\nstep 3: layers.1.attn" in text


def screen(text):
    """What a terminal shows of it: lines, after the cursor went up and lines were cleared."""
    lines, at = [""], 0
    for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|\n|\r|[^\x1b\n\r]+", text):
        if part == "\n":
            at += 1
            lines += [""] * (at + 1 - len(lines))
        elif part == "\x1b[1A":
            at -= 1
        elif part == "\x1b[2K":
            lines[at] = ""
        elif part[0] not in "\x1b\r":
            lines[at] += part
    return [line.rstrip() for line in lines]


IN_WANDB = """
import json, random, sys
import roundoff
from tests_of_sinks import FINDINGS, READINGS
from roundoff.live.sinks import WandB
from roundoff.state.random_states import RandomStates

def states():
    now = RandomStates.here()
    return now.torch.tolist(), now.numpy[1].tolist(), now.numpy[2], now.python

roundoff.Monitor
optional = {"transformers", "accelerate", "lightning", "pytorch_lightning", "tensorboard", "wandb"}
assert not optional & set(sys.modules)
before = states()
sink = WandB(folder=sys.argv[1])
sink.write(3, READINGS, FINDINGS)
run = sink._run
said = {"offline": run.offline, "summary": dict(run.summary)}
sink.close()
assert states() == before
print(json.dumps(said, default=str))
"""


def test_wandb_stays_offline_and_draws_nothing(tmp_path):
    """A proxy that nobody may ask stands in for the network. Nor is a library loaded early."""
    pytest.importorskip("wandb")
    (tmp_path / "tests_of_sinks.py").write_text(
        f"from math import inf, nan\nfrom roundoff.records import Finding, Reading\n"
        f"READINGS = {READINGS}\nFINDINGS = {FINDINGS}\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.setblocking(False)
        asked = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        names = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
        kept = {k: v for k, v in os.environ.items() if k.lower() != "no_proxy"}
        kept.pop("WANDB_ERROR_REPORTING", None)
        path = os.pathsep.join([str(tmp_path), *sys.path])
        environment = {**kept, **dict.fromkeys(names, asked), "PYTHONPATH": path}
        done = subprocess.run(
            [sys.executable, "-c", IN_WANDB, str(tmp_path / "new")],
            env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        with pytest.raises(BlockingIOError):
            proxy.accept()
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["offline"]
    summary = said["summary"]
    assert summary["roundoff/step"] == 3
    assert summary["roundoff/attention/layers.1.attn[2]/ratio"] == 9e4
    assert math.isnan(float(summary["roundoff/attention/layers.1.attn[1]/ratio"]))
    assert summary["roundoff/findings"] == ["step 3: layers.1.attn, head 2: error of out"]
    assert list((tmp_path / "new").glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.parametrize(
    ("make", "library"), [(TensorBoard, "tensorboard"), (lambda p: WandB(folder=p), "wandb")]
)
def test_a_missing_library_is_told_with_its_extra(make, library, monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingLibraryError, match=rf"{library}.*pip install 'roundoff\[live\]'"):
        make(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "make", [sink_at, JsonLines, RunDirectory, TensorBoard, lambda path: WandB(folder=path)]
)
def test_where_nothing_can_be_written_is_told_before_the_training(make, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match=r"^cannot .*file.*: (Not a directory|File exists)$"):
        make(tmp_path / "file" / "live.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def trained(steps, to):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(20)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = [Watch(of="gradients", every=1)]
    with Monitor(model, optimizer, watch=watch, to=to) as monitor:
        for _ in range(steps):
            model(torch.ones(1, 4)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters()], monitor


@pytest.mark.filterwarnings("ignore")
def test_a_full_disk_costs_the_sink_alone(tmp_path, caplog):
    """A limit on the size of files stands in for it: the kernel refuses the write half way."""
    sinks = [JsonLines(tmp_path / "a.jsonl"), RunDirectory(tmp_path / "run"),
             TensorBoard(tmp_path / "tb")]  # fmt: skip
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        with caplog.at_level(logging.WARNING, "roundoff"):
            weights, monitor = trained(40, sinks)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert all(torch.equal(a, b) for a, b in zip(weights, trained(40, ())[0], strict=True))
    assert monitor.readings[0].step == 39
    said = [record.getMessage() for record in caplog.records]
    sources = sorted(line.split()[1] for line in said)
    assert sources == ["JsonLines:", "RunDirectory:", "TensorBoard:"]
    assert all("switched off after an error, and the training goes on" in line for line in said)
    assert all("File too large" in line for line in said)
    run = Run.open(tmp_path / "run")
    assert 0 < len(run.rows()) < 40
    assert run.problems == []
    assert loads((tmp_path / "a.jsonl").read_text().splitlines()[-1])["of"] == "gradients"
