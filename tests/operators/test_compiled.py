"""What is compiled is kept on disk, until any source that it may be made of is another one."""

import importlib.util

import pytest

pytest.importorskip("numba")

from roundoff.operators import _numba

SOURCE = """
def add_one(x):
    x[0] += 1
"""


def from_disk(place):
    """Whether the loop of a module that is imported anew came from the disk."""
    import numpy as np

    spec = importlib.util.spec_from_file_location("loops", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = _numba.compiled(module.add_one)
    x = np.zeros(1)
    made(x)
    assert x[0] == 1.0
    return bool(made.stats.cache_hits)


def test_a_change_in_another_file_is_seen(tmp_path, monkeypatch):
    place = tmp_path / "loops.py"
    place.write_text(SOURCE)
    assert not from_disk(place)
    assert from_disk(place)
    monkeypatch.setattr(_numba, "_sources", lambda: "another digest")
    assert not from_disk(place)
    assert from_disk(place)
