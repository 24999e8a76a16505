"""The real command, and what it left on the disk."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from roundoff.cli import main

COMMAND = str(Path(sys.executable).parent / "roundoff")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


class Folder:
    """A working folder in which commands run."""

    def __init__(self, path):
        self.path = path

    def start(self, *arguments, **options):
        """Start `roundoff ...` and do not wait."""
        return subprocess.Popen(
            [COMMAND, *map(str, arguments)], cwd=self.path, env=ENVIRONMENT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
        )  # fmt: skip

    def run(self, *arguments, status=0, **options):
        """Run `roundoff ...` to its end; (standard output, standard error)."""
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=200)
        assert process.returncode == status, err
        return out, err

    def lines(self, run="run"):
        """Every whole line of a run, in all files: what follows the last newline was cut short."""
        files = sorted((self.path / run).glob("cells-*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().split("\n")[:-1]]

    def done(self, run="run"):
        """The ids of the lines that are "ok", with repetitions."""
        return [line["id"] for line in self.lines(run) if line["status"] == "ok"]


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


@pytest.fixture
def inside(folder, monkeypatch, capsys):
    """The same in this process, which saves loading torch: (standard output, standard error)."""
    monkeypatch.chdir(folder.path)

    def run(*arguments, status=0):
        asked = [str(a) for a in arguments]
        monkeypatch.setattr(sys, "argv", ["roundoff", *asked])  # what "again:" repeats
        with pytest.raises(SystemExit) as ended:
            main(asked)
        out, err = capsys.readouterr()
        assert ended.value.code == status, err
        return out, err

    return run
