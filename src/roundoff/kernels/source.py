"""What a user's kernel is made of: the digest of its source and of all that it imports.

Imports are read from the source, not from what happens to be loaded, so that the digest is
the same in every process: also those inside functions, and those that bring only a constant.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

__all__ = ["is_library", "reached", "source_digest"]

_STANDARD = Path(sysconfig.get_path("stdlib")).resolve()
_OURS = Path(__file__).resolve().parents[1]
_INSTALLED = {"site-packages", "dist-packages"}
_NATIVE = {".cu", ".cuh", ".cpp", ".cc", ".c", ".h", ".hpp", ".ptx", ".cubin", ".so", ".metal"}


def source_digest(file: Path, package: str = "") -> str:
    """The digest of the module in `file`, of every file of the user's that it reaches, and of
    the versions of the installed libraries that these import.

    Reached are imported modules, and files beside a module that it names in a string and that
    hold native code (`load(sources=["mine.cu"])`). What is imported under a computed name
    cannot be seen. Names and contents count; the folder does not, so a moved kernel is the
    same kernel.
    """
    files, libraries = reached(file, package)
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\0".encode())
    for name in sorted(libraries):
        digest.update(f"{name}\0{_version(name)}\0".encode())
    return digest.hexdigest()


def reached(file: Path, package: str = "") -> tuple[dict[str, Path], set[str]]:
    """The user's files by name, `file` included, and the installed modules that they import."""
    files: dict[str, Path] = {}
    libraries: set[str] = set()
    todo = [(file.name, file.resolve(), package)]
    while todo:
        name, path, home = todo.pop()
        if name in files:
            continue
        files[name] = path
        if path.suffix != ".py":
            continue
        if is_library(path):  # an installed kernel is known by its distribution's version
            libraries.add(home.partition(".")[0])
            continue
        tree = ast.parse(path.read_bytes(), filename=str(path))
        todo += [(f"{name}/{p.name}", p, "") for p in _native_files(tree, path.parent)]
        for module in _imported(tree, home):
            found = _find(module)
            if found is None:
                continue
            where, inside = found
            if not is_library(where):
                todo.append((module, where, inside))
            elif not where.is_relative_to(_OURS) and module not in sys.stdlib_module_names:
                libraries.add(module.partition(".")[0])
    return files, libraries


def is_library(file: Path) -> bool:
    """Whether a file belongs to an installed library, to Python or to roundoff."""
    path = file.resolve()
    ours = path.is_relative_to(_STANDARD) or path.is_relative_to(_OURS)
    return ours or not _INSTALLED.isdisjoint(path.parts)


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    """The dotted names that may be modules, with the packages that they lie in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _prefixes(alias.name)
        elif isinstance(node, ast.ImportFrom):
            if node.level and not package:
                continue
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                yield from _prefixes(f"{base}.{alias.name}")


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[:n]) for n in range(1, len(parts) + 1))


def _find(name: str) -> tuple[Path, str] | None:
    """The file of a module, found without importing it, and the package that it lies in."""
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ValueError, ImportError):  # __main__, or a parent that is half imported
        return None
    if spec is None:
        return None
    places = [Path(place) for place in spec.submodule_search_locations or []]
    if not rest:
        file = Path(spec.origin) if spec.has_location and spec.origin else None
        return None if file is None else (file, top if places else "")
    for part in rest[:-1]:
        places = [place / part for place in places]
    return _in_folders(places, rest[-1], name)


def _in_folders(places: list[Path], part: str, name: str) -> tuple[Path, str] | None:
    for place in places:
        if (package := place / part / "__init__.py").is_file():
            return package, name
        for suffix in importlib.machinery.all_suffixes():
            if (file := place / f"{part}{suffix}").is_file():
                return file, name.rpartition(".")[0]
    return None


def _native_files(tree: ast.AST, folder: Path) -> Iterator[Path]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
            if len(text) < 256 and Path(text).suffix in _NATIVE and (folder / text).is_file():
                yield (folder / text).resolve()


@cache
def _distributions() -> dict[str, list[str]]:
    return {
        name: list(found) for name, found in importlib.metadata.packages_distributions().items()
    }


def _version(module: str) -> str:
    """The version of the distribution that a top-level module comes from; "" where none says so."""
    try:  # most are called as their module is, and looking at all of them takes a second
        return importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:
        names = sorted(set(_distributions().get(module, [])))
        return ",".join(f"{name}=={importlib.metadata.version(name)}" for name in names)
