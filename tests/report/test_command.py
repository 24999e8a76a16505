"""`roundoff report`."""

import json
from pathlib import Path

import pytest

from roundoff.cli.report import report_command
from roundoff.errors import RunError

from .runs import RUNS


def test_says_where_the_page_is(tmp_path, capsys):
    run = RUNS["one_cell"](tmp_path / "run")
    report_command(run.path)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "report.html" in "".join(printed.err.split())
    assert (run.path / "report.html").is_file()


def test_json_is_one_document(tmp_path, capsys):
    run = RUNS["one_cell"](tmp_path / "run")
    report_command(run.path, output=tmp_path / "out", json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    assert document["kind"] == "report"
    assert Path(document["report"][0]) == tmp_path / "out" / "report.html"
    assert all(Path(path).is_file() for path in document["report"])


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="no run"):
        report_command(tmp_path)
