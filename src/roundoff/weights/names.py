"""Names of tensors: without the prefixes of wrappers, renamed by a mapping, and their groups."""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

from roundoff.errors import CheckpointError, UnknownNameError, UsageError
from roundoff.state.wrappers import DDP, unwrapped_name

__all__ = ["bare_names", "group_of", "optimizer_kinds", "read_renames", "renamed"]

OPTIMIZERS = {
    "optimizer", "optimizers", "optim", "optimizer_state", "optimizer_states",
    "optimizer_state_dict", "optim_state_dict", "optim_state", "base_optimizer_state",
}  # fmt: skip
"""Parts of names, below which torch, DCP, Lightning and DeepSpeed keep their state."""
KINDS = {
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg",
    "grad_avg", "acc_delta", "exp_avg_sq_row", "exp_avg_sq_col", "master_param", "master_weight",
    "master_weights", "fp32_param", "fp32_from_fp16_params", "fp32_flat_groups",
    "single_partition_of_fp32_groups",
}  # fmt: skip
"""What optimizers call what they keep for each weight, copies of weights in fp32 among it."""


def bare_names(path: str, names: Iterable[str]) -> dict[str, str]:
    """Return the names without wrappers' prefixes, each with the name that it had.

    `module` is a wrapper's where it is all that its parent holds. Raises `CheckpointError` where
    two names become one.

    >>> bare_names("a.pt", ["module._orig_mod.fc.weight", "module._orig_mod.fc.bias"])
    {'fc.weight': 'module._orig_mod.fc.weight', 'fc.bias': 'module._orig_mod.fc.bias'}
    """
    split = {name: unwrapped_name(name).split(".") for name in names}
    children: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for parts in split.values():
        for depth, part in enumerate(parts):
            children[tuple(parts[:depth])].add(part)
    bare: dict[str, str] = {}
    for name, parts in split.items():
        kept = [
            part for depth, part in enumerate(parts)
            if depth == len(parts) - 1 or part != DDP or len(children[tuple(parts[:depth])]) > 1
        ]  # fmt: skip
        short = ".".join(kept) or name
        if short in bare:
            raise CheckpointError(f"{path}: {bare[short]!r} and {name!r} are both {short!r}")
        bare[short] = name
    return bare


def group_of(name: str) -> str:
    """Return the layer of a tensor: its name up to the first number, else without the last part.

    >>> group_of("model.layers.3.mlp.up.weight"), group_of("lm_head.weight"), group_of("scale")
    ('model.layers.3', 'lm_head', 'scale')
    """
    parts = name.split(".")
    for depth, part in enumerate(parts[:-1]):
        if part.isdigit():
            return ".".join(parts[: depth + 1])
    return ".".join(parts[:-1]) or name


def optimizer_kinds(names: Iterable[str]) -> dict[str, str]:
    """Return the names that belong to an optimizer, with the kind of each: `exp_avg`, `step`.

    They are below a part that is called as optimizers are, or hold one of the words that optimizers
    use, or stand beside such a name.

    >>> optimizer_kinds(["fc.weight", "optimizer.state.0.step", "state.0.exp_avg", "state.0.step"])
    {'optimizer.state.0.step': 'step', 'state.0.exp_avg': 'exp_avg', 'state.0.step': 'step'}
    """
    parts = {name: name.split(".") for name in names}
    beside = {tuple(p[:-1]) for p in parts.values() if len(p) > 1 and p[-1] in KINDS}
    return {
        name: next((part for part in p if part in KINDS), p[-1])
        for name, p in parts.items()
        if not KINDS.isdisjoint(p) or not OPTIMIZERS.isdisjoint(p[:-1]) or tuple(p[:-1]) in beside
    }


def read_renames(path: Path) -> dict[str, str]:
    """Read a mapping of renamed tensors: a TOML table `[rename]`, from names in A to names in B.

    A name that ends in a dot stands for all names that begin with it, and an empty one for all.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the mapping {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"{path} is no TOML: {' '.join(str(error).split())}") from None
    match document:
        case {"rename": dict() as found} if len(document) == 1:  # pyright: ignore[reportUnknownVariableType]
            table = cast("dict[str, object]", found)
        case _:
            raise UsageError(
                f'{path}: expected one table [rename] of lines "name in A" = "name in B"'
            )
    for old, new in table.items():
        if not isinstance(new, str) or _is_prefix(old) != _is_prefix(new):
            raise UsageError(
                f"{path}: {old!r} must be given a name (quoted, as it may hold dots); "
                "a prefix ends in a dot on both sides"
            )
    return cast("dict[str, str]", table)


def _is_prefix(name: str) -> bool:
    return not name or name.endswith(".")


def renamed(names: Mapping[str, str], renames: Mapping[str, str]) -> dict[str, str]:
    """Return the same with names in A as they are in B; raises for an entry that meets nothing.

    >>> renamed({"h.0.w": "h.0.w", "b": "b"}, {"h.": "layers.", "b": "bias"})
    {'layers.0.w': 'h.0.w', 'bias': 'b'}
    """
    prefixes = sorted(filter(_is_prefix, renames), key=len, reverse=True)
    used: set[str] = set()
    result: dict[str, str] = {}
    for name, origin in names.items():
        old = name if name in renames else next(filter(name.startswith, prefixes), None)
        new = name if old is None else renames[old] + name[len(old) :]
        used |= set() if old is None else {old}
        if new in result:
            raise UsageError(f"{result[new]!r} and {origin!r} would both be {new!r}")
        result[new] = origin
    for old in renames.keys() - used:
        raise UnknownNameError("tensor or prefix of A", old, names)
    return result
