"""What a user's kernel is made of: found in the source, wherever the files lie."""

import shutil
import sys
from pathlib import Path

import pytest

from roundoff.kernels.source import is_library, reached, source_digest

FILES = {
    "mine.py": """
import math
import torch
import helper
from constants import SCALE
from package.inner import f
def kernel(q, k, v):
    import lazily
    load(sources=["mine.cu"])
    return f(q)
""",
    "helper.py": "import deeper\n",
    "deeper.py": "X = 1\n",
    "constants.py": "SCALE = 2.0\n",
    "lazily.py": "Y = 1\n",
    "package/__init__.py": "",
    "package/inner.py": "from . import sibling\nfrom .sibling import Z\n",
    "package/sibling.py": "Z = 1\n",
    "mine.cu": "__global__ void f() {}\n",
    "unrelated.py": "W = 1\n",
}
REACHED = [name for name in FILES if name != "unrelated.py"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_every_file_that_is_imported_is_reached(folder):
    files, libraries = reached(folder / "mine.py")
    assert sorted(p.relative_to(folder).as_posix() for p in files.values()) == sorted(REACHED)
    assert libraries == {"torch"}
    assert not {"helper", "package", "lazily"} & set(sys.modules)  # nothing was run


@pytest.mark.parametrize("name", REACHED)
def test_an_edit_of_any_of_them_changes_the_digest(folder, name):
    before = source_digest(folder / "mine.py")
    edit = "EDITED = 1\n" if name.endswith(".py") else "// edited\n"
    (folder / name).write_text(FILES[name] + edit)
    assert source_digest(folder / "mine.py") != before


def test_what_is_not_imported_and_when_it_was_written_do_not_count(folder):
    before = source_digest(folder / "mine.py")
    (folder / "unrelated.py").write_text("W = 2\n")
    (folder / "mine.py").touch()
    assert source_digest(folder / "mine.py") == before


def test_a_moved_kernel_is_the_same_kernel(folder, tmp_path_factory, monkeypatch):
    before = source_digest(folder / "mine.py")
    other = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(folder, other)
    monkeypatch.setattr(sys, "path", [str(other), *(p for p in sys.path if p != str(folder))])
    assert source_digest(other / "mine.py") == before


def test_the_version_of_an_imported_library_counts(folder, monkeypatch):
    before = source_digest(folder / "mine.py")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0.1")
    assert source_digest(folder / "mine.py") != before


def test_an_installed_kernel_is_known_by_its_distribution(monkeypatch):
    import mpmath  # any installed module with a file

    file = Path(mpmath.__file__)
    assert is_library(file)
    assert reached(file, "mpmath") == ({"__init__.py": file.resolve()}, {"mpmath"})
    before = source_digest(file, "mpmath")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0.1")
    assert source_digest(file, "mpmath") != before
