"""What is compiled is kept on disk, until any source that it may be made of is another one."""

import contextlib
import importlib.util
import resource

import numpy as np
import pytest

pytest.importorskip("numba")

from roundoff.formats import _compiled

SOURCE = """
def add_one(x):
    x[0] += 1
"""


def loop_of(place):
    """The loop of a module that is imported anew, as another process would have it."""
    spec = importlib.util.spec_from_file_location("loops", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return _compiled.compiled(module.add_one)


def from_disk(place, adds=1, dtype=np.float64):
    """Whether the loop came from the disk."""
    made = loop_of(place)
    x = np.zeros(1, dtype)
    made(x)
    assert x[0] == adds
    return bool(made.stats.cache_hits)


def test_a_change_in_another_file_is_seen(tmp_path, monkeypatch):
    place = tmp_path / "loops.py"
    place.write_text(SOURCE)
    assert not from_disk(place)
    assert from_disk(place)
    for name in ("_sources", "_digest"):
        monkeypatch.setattr(_compiled, name, lambda: "another digest")
    assert not from_disk(place)
    assert from_disk(place)


def test_sources_that_changed_while_they_were_imported_are_not_kept(tmp_path, monkeypatch):
    place = tmp_path / "loops.py"
    place.write_text(SOURCE)
    monkeypatch.setattr(_compiled, "_sources", lambda: "what was read first")
    assert not from_disk(place)
    assert not from_disk(place)


def test_two_processes_that_write_at_once_do_not_swap_their_code(tmp_path):
    """Both read an index without the other, and the first is the last to write its code."""
    place = tmp_path / "loops.py"
    place.write_text(SOURCE)
    first, second = loop_of(place), loop_of(place)
    files = [made._cache._cache_file for made in (first, second)]
    write = files[0]._save_data
    files[1]._load_index = dict
    files[0]._save_data = lambda *a: (second(np.zeros(1, np.float32)), write(*a))
    first(np.zeros(1, np.float64))
    for dtype in (np.float32, np.float64):
        from_disk(place, dtype=dtype)


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
