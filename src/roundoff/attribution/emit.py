"""An explanation as files: a repro of the worst rows, and the recipe as a declaration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch

from roundoff.attribution.explain import Explanation
from roundoff.formats import FORMATS, Format, to_dtype
from roundoff.registry import load
from roundoff.store.disk import disk_errors

__all__ = ["declaration", "emit"]

ROWS = 16


def emit(found: Explanation, folder: Path) -> list[Path]:
    """Write `repro.safetensors` and `recipe.py` into `folder`, and return their paths.

    The repro holds the inputs, and of the rows in which the kernel is farthest from its recipe,
    in units of golden: their numbers, golden, the recipe's output and the kernel's. Raises
    `RunError` where the folder cannot be written.
    """
    save_file: Any = load("safetensors.torch:save_file")
    example = found.residue.example
    inputs = {n: x if x.dtype == torch.bool else to_dtype(x, found.format)
              for n, x in example.inputs.items()}  # fmt: skip
    worst = example.worst(ROWS)
    outputs = {
        name: x.index_select(example.row_axis, worst).cpu().contiguous()
        for name, x in (("golden", example.golden), ("recipe", example.recipe),
                        ("kernel", example.kernel))
    }  # fmt: skip
    tensors = {n: x.cpu().contiguous() for n, x in inputs.items()} | outputs | {"rows": worst}
    repro, source = folder / "repro.safetensors", folder / "recipe.py"
    with disk_errors("write", folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, repro)
        source.write_text(declaration(found.recipe), encoding="utf-8")
    return [repro, source]


def declaration(recipe: Any) -> str:
    """Python source that makes `recipe` again, with what is not the default written out.

    >>> from roundoff.operators.softmax.recipe import Recipe
    >>> print(declaration(Recipe(name="mine", doc="of mine", tile=64)))
    from roundoff.operators.softmax.recipe import Recipe
    <BLANKLINE>
    RECIPE = Recipe(
        name='mine',
        doc='of mine',
        tile=64,
    )
    <BLANKLINE>
    """
    used: dict[str, set[str]] = {}

    def name_of(kind: type) -> str:
        used.setdefault(kind.__module__, set()).add(kind.__name__)
        return kind.__name__

    body = _written(recipe, name_of, "")
    if "get_format(" in body:
        used.setdefault("roundoff.formats", set()).add("get_format")
    imports = "".join(
        f"from {module} import {', '.join(sorted(names))}\n"
        for module, names in sorted(used.items())
    )
    return f"{imports}\nRECIPE = {body}\n"


def _written(value: Any, name_of: Callable[[type], str], indent: str) -> str:
    if isinstance(value, Format):
        if value.name in FORMATS and FORMATS[value.name] == value:
            return f"get_format({value.name!r})"
        return _call(value, name_of, indent, defaults=False)
    if dataclasses.is_dataclass(value):
        return _call(value, name_of, indent)
    if isinstance(value, tuple):
        inner = (_written(x, name_of, indent + "    ") for x in cast("tuple[Any, ...]", value))
        return "(" + "".join(f"{x}, " for x in inner) + ")"
    return repr(value)


def _call(value: Any, name_of: Callable[[type], str], indent: str, *, defaults: bool = True) -> str:
    deeper = indent + "    "
    lines = [
        f"{deeper}{field.name}={_written(getattr(value, field.name), name_of, deeper)},\n"
        for field in dataclasses.fields(value)
        if not (defaults and getattr(value, field.name) == field.default)
    ]
    name = name_of(cast("type[Any]", type(value)))
    return f"{name}(\n{''.join(lines)}{indent})" if lines else f"{name}()"
