"""The command `roundoff list`: each kind has the names that the other commands take."""

import json

import pytest

from roundoff.cli.list import _LISTS
from roundoff.training.arms import CONTROLS, FORMATS, parse_arm
from roundoff.workloads import WORKLOADS


@pytest.mark.parametrize("kind", _LISTS)
def test_every_kind_is_a_table_and_a_document(inside, kind):
    out, _ = inside("list", kind)
    assert out.splitlines()[0] == kind
    document = json.loads(inside("list", kind, "--json")[0])
    assert document["kind"] == "list"
    assert document[kind]


def test_workloads_and_arms_are_those_that_training_takes(inside):
    document = json.loads(inside("list", "--json")[0])
    assert [row["name"] for row in document["workloads"]] == list(WORKLOADS)
    named = [row["name"] for row in document["arms"] if row["name"].islower()]
    assert named[:-1] == [*CONTROLS, *FORMATS]
    assert named[-1] == "module:function"
    for name in named[:-1]:
        assert parse_arm(name).name == name


def test_an_unknown_kind_is_one_line(inside):
    _, err = inside("list", "workload", status=2)
    assert "workloads" in err
    assert err.strip().count("\n") == 0
