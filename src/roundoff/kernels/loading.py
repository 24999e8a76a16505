"""Import the user's `module:function` or `path/to/file.py:function`.

Importing it leaves no trace: torch's settings are put back (and kept for its calls), what it
prints goes to standard error, and its folder goes to the end of the path.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from roundoff.errors import UnknownNameError, UsageError
from roundoff.kernels import settings
from roundoff.kernels.source import is_library, reached, source_digest

__all__ = ["Loaded", "load"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A function of the user's, what it is made of, and the settings that its module made."""

    name: str
    function: Callable[..., Any]
    source: str
    settings: dict[str, Any]


@cache
def load(place: str) -> Loaded:
    """The function at `place`; one process loads it once, and sees no later edit."""
    where, _, name = place.rpartition(":")
    if not where or not name:
        raise UsageError(
            f"{place!r} names no function; expected module:function or file.py:function"
        )
    folder = Path(where).resolve().parent if where.endswith(".py") else Path.cwd()
    before = settings.read()
    importlib.invalidate_caches()  # the file may be younger than what Python knows of its folder
    try:
        with settings.kept(), _first_on_path(folder), contextlib.redirect_stdout(sys.stderr):
            module = _from_file(Path(where)) if where.endswith(".py") else _by_name(where)
            made = settings.changed(before)
            file = Path(module.__file__ or "")
            _check_namesakes(where, file, folder)
            source = source_digest(file, module.__package__ or "")
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"cannot import {where!r} for {place!r}: {type(error).__name__}: {error}"
        ) from error
    return Loaded(name, _function(module, where, name), source, made)


def _function(module: ModuleType, where: str, name: str) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if function is None:
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise UnknownNameError(f"function of {where}", name, known)
    if not callable(function):
        raise UsageError(f"{where}:{name} is a {type(function).__name__}; expected a function")
    return function


@contextlib.contextmanager
def _first_on_path(folder: Path) -> Generator[None]:
    """As for a script, its folder comes first; afterwards last, for imports inside functions."""
    place = str(folder)
    sys.path.insert(0, place)
    try:
        yield
    finally:
        sys.path.remove(place)
        if place not in sys.path:
            sys.path.append(place)


def _by_name(name: str) -> ModuleType:
    module = importlib.import_module(name)
    if not getattr(module, "__file__", None):
        raise ImportError(f"{name} is a folder or built in; expected a module with a file")
    return module


def _from_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    name = f"roundoff_user_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _check_namesakes(where: str, file: Path, folder: Path) -> None:
    """Refuse a helper that Python took from another kernel's folder because it was there first."""
    if is_library(file):
        return
    for name in reached(file)[0]:
        loaded = getattr(sys.modules.get(name), "__file__", None)
        beside = (folder / f"{name}.py", folder / name / "__init__.py")
        own = next((p for p in beside if p.is_file()), None)
        if loaded and own and not is_library(Path(loaded)) and Path(loaded).resolve() != own:
            raise UsageError(
                f"{where} imports {name!r} from {own}, but {loaded} of the same name is loaded "
                "already; rename one of them, or measure the two in separate commands"
            )
