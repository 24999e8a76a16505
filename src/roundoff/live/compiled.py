"""Which modules run inside a graph of torch.compile, where no hook can look without changing it."""

from __future__ import annotations

from typing import Any

from torch import nn

from roundoff.state.wrappers import unwrapped_name

__all__ = ["compiled_names"]


def compiled_names(root: nn.Module, wrapper: nn.Module | None = None) -> set[str]:
    """The names of modules in `root` that are compiled, or lie in one that is.

    `wrapper` is what was made of `root`; where that is torch.compile's, all are.

    >>> model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    >>> model[1].compile()
    >>> compiled_names(model)
    {'1'}
    """
    modules: Any = root.named_modules
    named: dict[str, nn.Module] = dict(modules())
    whole = wrapper is not None and hasattr(wrapper, "_orig_mod")
    heads = [name for name, m in named.items() if hasattr(m, "_orig_mod") or _is_compiled(m)]
    return {
        unwrapped_name(name)
        for name in named
        if whole or any(not head or name == head or name.startswith(head + ".") for head in heads)
    }


def _is_compiled(module: Any) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None
