"""What is compiled is kept on disk, until any source that it may be made of is another one."""

import contextlib
import importlib.util
import resource

import pytest

pytest.importorskip("numba")

from roundoff.formats import _compiled

SOURCE = """
def add_one(x):
    x[0] += 1
"""


def from_disk(place, adds=1):
    """Whether the loop of a module that is imported anew came from the disk."""
    import numpy as np

    spec = importlib.util.spec_from_file_location("loops", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = _compiled.compiled(module.add_one)
    x = np.zeros(1)
    made(x)
    assert x[0] == adds
    return bool(made.stats.cache_hits)


def test_a_change_in_another_file_is_seen(tmp_path, monkeypatch):
    place = tmp_path / "loops.py"
    place.write_text(SOURCE)
    assert not from_disk(place)
    assert from_disk(place)
    monkeypatch.setattr(_compiled, "_sources", lambda: "another digest")
    assert not from_disk(place)
    assert from_disk(place)


@contextlib.contextmanager
def full_disk(left):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_costs_time_alone(tmp_path):
    """With no room for anything, and with room for the index but not for the code."""
    place = tmp_path / "loops.py"
    place.write_text(SOURCE.replace("1", "2"))
    assert not from_disk(place, adds=2)
    place.write_text(SOURCE)
    for left in (100, 2500):
        with full_disk(left):
            assert not from_disk(place)
    assert not list(tmp_path.rglob("*.tmp.*"))
    assert not from_disk(place)
    assert from_disk(place)
