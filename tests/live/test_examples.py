"""The example of a loop of one's own; those of trainers stand beside the tests of these."""

import pytest

from .trainers import example, finds_the_planted_head

pytest.importorskip("transformers")


def test_the_example_names_the_planted_head(monkeypatch):
    finds_the_planted_head(example("plain_loop", monkeypatch).train)
