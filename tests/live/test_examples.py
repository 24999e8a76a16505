"""The example of a loop of one's own; those of trainers stand beside the tests of these."""

import sys

import pytest

from .trainers import example, finds_the_planted_head

pytest.importorskip("transformers")


def test_the_example_names_the_planted_head(monkeypatch):
    finds_the_planted_head(example("plain_loop", monkeypatch).train)


@pytest.mark.parametrize("option", ["--every", "--steps", "--start"])
def test_an_option_that_cannot_be_is_one_line(option, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["plain_loop.py", option, "-1"])
    with pytest.raises(SystemExit) as caught:
        example("plain_loop", monkeypatch).options()
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"plain_loop.py: {option} is -1; expected at least ")
