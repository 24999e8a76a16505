"""The table of metrics matches the fields of `Deviation`, and costs no torch to read."""

import dataclasses
import subprocess
import sys

import pytest

from roundoff import metrics
from roundoff.metrics import METRICS, Deviation

NAMES = [field.name for field in dataclasses.fields(Deviation) if field.name != "sums"]


def test_one_row_a_field():
    assert list(METRICS) == NAMES


@pytest.mark.parametrize("name", METRICS)
def test_row(name):
    row = METRICS[name]
    assert row.name == name
    assert 0 < len(row.meaning) <= 60


def test_all_is_sorted_and_complete():
    # As ruff sorts: constants, classes, functions.
    assert metrics.__all__ == sorted(
        metrics.__all__, key=lambda n: (not n.isupper(), not n[0].isupper(), n)
    )
    assert set(metrics._PLACES) | {"METRICS", "Metric"} == set(metrics.__all__)
    assert all(getattr(metrics, name) is not None for name in metrics.__all__)
    assert dir(metrics) == sorted(metrics.__all__)
    with pytest.raises(AttributeError, match="no attribute 'mse'"):
        metrics.mse  # noqa: B018


def test_reading_the_table_imports_no_torch():
    code = "import sys, roundoff.metrics as m; list(m.METRICS); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
