"""Logs as the real libraries write them, and every spelling of NaN."""

import csv
import json
import math
import sys

import pytest
import torch

from roundoff.errors import MissingLibraryError, RunError, UsageError
from roundoff.live.logs import chosen, read_log
from roundoff.live.logs.series import number
from roundoff.live.monitor import Monitor

NAN, INF = math.nan, math.inf


def same(found, wanted):
    return len(found) == len(wanted) and all(
        a[0] == b[0] and (a[1] == b[1] or (math.isnan(a[1]) and math.isnan(b[1])))
        for a, b in zip(found, wanted, strict=True)
    )


def points(path, name):
    [series] = [one for one in read_log(path) if one.name == name]
    return series.points


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("nan", NAN), ("NaN", NAN), ("NAN", NAN), ("-nan", NAN), ("1.#QNAN", NAN), ("null", NAN),
        ("inf", INF), ("Infinity", INF), ("+inf", INF), ("-Infinity", -INF), ("-1.#INF", -INF),
        (None, NAN), (NAN, NAN), (-INF, -INF), (10**400, INF), ("1e999", INF),
        (" 2.5 ", 2.5), (3, 3.0), ("", None), ("a word", None), (True, None), ([1], None),
    ],
)  # fmt: skip
def test_numbers(text, value):
    found = number(text)
    assert found == value or (found is not None and math.isnan(found) and math.isnan(value))


def test_a_trainer_of_hugging_face(tmp_path):
    """What its Trainer really writes, asked by file, by checkpoint and by output folder."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from .trainers import llama, rows

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=3, per_device_train_batch_size=1, save_steps=2,
        logging_steps=1, report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    data = [{"input_ids": row, "labels": row} for row in rows(2)]
    transformers.Trainer(model=llama(), args=arguments, train_dataset=data).train()
    for place in ("out/checkpoint-3/trainer_state.json", "out/checkpoint-3", "out"):
        series = {one.name: one.points for one in chosen(read_log(tmp_path / place))}
        assert [step for step, _ in series["loss"]] == [1, 2, 3]
        assert [step for step, _ in series["grad_norm"]] == [1, 2, 3]
    state = tmp_path / "out/checkpoint-3/trainer_state.json"
    document = json.loads(state.read_text())
    document["log_history"][1]["grad_norm"] = NAN
    state.write_text(json.dumps(document))
    assert "NaN" in state.read_text()
    assert math.isnan(points(tmp_path / "out", "grad_norm")[1][1])


def test_lightnings_csv(tmp_path):
    lightning = pytest.importorskip("lightning")
    logger = lightning.pytorch.loggers.CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    for step in range(3):
        logger.log_metrics({"train_loss": 2.0 - step if step != 1 else NAN}, step=step)
        logger.log_metrics({"lr": 0.1}, step=step)
    logger.save()
    [file] = tmp_path.rglob("metrics.csv")
    assert same(points(file, "train_loss"), [(0, 2.0), (1, NAN), (2, 0.0)])
    assert same(points(file.parent, "train_loss"), points(file, "train_loss"))


def test_tables_of_pandas_and_of_others(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"step": [5, 6], "loss": [1.0, INF], "note": ["a", "b"]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    assert points(tmp_path / "a.csv", "loss") == ((5, 1.0), (6, INF))
    frame.to_csv(tmp_path / "b.csv", index=False, sep=";")
    assert points(tmp_path / "b.csv", "loss") == ((5, 1.0), (6, INF))
    with (tmp_path / "c.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["loss"], ["2.5"], ["#NA"], ["nan"]])
    assert same(points(tmp_path / "c.csv", "loss"), [(0, 2.5), (2, NAN)])


def test_tensorboards_events(tmp_path):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    for folder, shift in (("a", 0.0), ("b", 1.0)):
        with SummaryWriter(tmp_path / folder) as writer:
            for step, value in enumerate((1.0, NAN, INF)):
                writer.add_scalar("train/loss", value + shift, step)
    assert same(points(tmp_path, "b/train/loss"), [(0, 2.0), (1, NAN), (2, INF)])
    [file] = (tmp_path / "a").iterdir()
    assert same(points(file, "train/loss"), [(0, 1.0), (1, NAN), (2, INF)])


def test_json_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text(
        '{"step": 1, "train": {"loss": 2.5}}\n\n{"step": 2, "train": {"loss": NaN}}\n'
        '{"step": 3, "train": {"loss": "Infinity"}, "text": "x"}\n{"step": 4, "tra'
    )
    assert same(points(path, "train.loss"), [(1, 2.5), (2, NAN), (3, INF)])


def test_what_a_monitor_wrote(tmp_path):
    for place in ("run", "log.jsonl"):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Monitor(model, optimizer, every=1, to=tmp_path / place):
            for _ in range(3):
                model(torch.ones(2, 4)).sum().backward()
                optimizer.step()
        [series] = chosen(read_log(tmp_path / place))
        assert series.name == "gradients/*/norm"
        assert [step for step, _ in series.points] == [0, 1, 2]


def test_what_is_no_log(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="no such file or folder; expected a log: trainer_state"):
        read_log(tmp_path / "absent.csv")
    with pytest.raises(UsageError, match="holds no log"):
        read_log(tmp_path)
    for name, text, words in (
        ("a.txt", "x", "is no log that roundoff knows"),
        ("a.json", "{}", "no log_history; expected a trainer_state.json"),
        ("b.json", "[", "expected a trainer_state.json"),
        ("a.csv", "", "has no numbers in it"),
        ("a.jsonl", "{}\nnot json\n{}\n", "line 2: not JSON; expected one mapping a line"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UsageError, match=words):
            read_log(tmp_path / name)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(RunError, match="is of something else"):
        read_log(tmp_path)


def test_which_series_are_looked_at(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,loss,eval_loss,grad_norm,val/loss,lr\n1,2,2,2,2,2\n")
    series = read_log(path)
    assert [one.name for one in chosen(series)] == ["loss", "grad_norm"]
    assert [one.name for one in chosen(series, "*loss")] == ["loss", "eval_loss", "val/loss"]
    with pytest.raises(UsageError, match="fits the pattern 'x'; there are loss, eval_loss"):
        chosen(series, "x")
    with pytest.raises(UsageError, match="is called like a loss or a gradient norm; there are lr"):
        chosen([one for one in series if one.name == "lr"])


def test_tensorboard_that_is_missing(tmp_path, monkeypatch):
    (tmp_path / "events.out.tfevents.1").write_bytes(b"")
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingLibraryError, match=r"pip install 'roundoff\[live\]'"):
        read_log(tmp_path)
