"""Which modules run inside a graph of torch.compile, where no hook can look without changing it."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from roundoff.live.left_out import LeftOut
from roundoff.live.sources import named_modules
from roundoff.live.watch import Watch

__all__ = ["compiled_modules", "compiled_names", "has_compiled", "in_sight"]


def compiled_modules(root: nn.Module, wrapper: nn.Module | None = None) -> set[nn.Module]:
    """The modules in `root` that are compiled, or lie in one that is.

    `wrapper` is what was made of `root`; where that is torch.compile's, all are.
    """
    if hasattr(wrapper, "_orig_mod"):
        return {*root.modules()}
    heads = [m for m in root.modules() if hasattr(m, "_orig_mod") or _is_compiled(m)]
    return {module for head in heads for module in head.modules()}


def compiled_names(root: nn.Module, wrapper: nn.Module | None = None) -> set[str]:
    """The names of those modules.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1))
    >>> model[1].compile()
    >>> model[2] = torch.compile(model[2])
    >>> sorted(compiled_names(model))
    ['1', '2']
    """
    hidden = compiled_modules(root, wrapper)
    return {name for name, module in named_modules(root).items() if module in hidden}


def in_sight(root: nn.Module, watch: Watch, left_out: LeftOut) -> dict[str, nn.Module]:
    """The modules that fit, less those that are compiled: they are left out."""
    hidden = compiled_names(root)
    fitting = {name: m for name, m in named_modules(root).items() if watch.fits(name)}
    for name in (name for name in fitting if name in hidden):
        left_out.put(name, "compiled")
    return {name: module for name, module in fitting.items() if name not in hidden}


def has_compiled() -> bool:
    """Whether torch.compile has made a graph in this process."""
    dynamo: Any = sys.modules.get("torch._dynamo.utils")
    return dynamo is not None and bool(dynamo.counters["frames"]["ok"])


def _is_compiled(module: Any) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None
