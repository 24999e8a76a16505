"""Which model runs, as hooks of its modules say: what stands in its attention's place, who watches.

torch's `scaled_dot_product_attention` and transformers' `AttentionInterface` are one for the
whole process, so what stands in them (see `doors`) asks here.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Generator, Iterable
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from roundoff.intercept.hooks import Hook

__all__ = [
    "RUNNING", "Attend", "Listener", "Told", "compiled_anew", "outside", "running", "uncompiled",
    "watching",
]  # fmt: skip


class Attend(Protocol):
    """What stands in for attention, and its name."""

    name: str

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, causal: bool,
        scale: float | None,
    ) -> Tensor:  # fmt: skip
        """The output."""
        ...


F = TypeVar("F", bound=Callable[..., Any])


class Told(NamedTuple):
    """A call of attention that has run: what went in, as it went in, and what came out.

    `again(q, k, v, mask)` runs the same kernel on other tensors. `exact` says that nothing but
    softmax(QK^T * scale + mask) V was asked for (no dropout, no soft cap). `name` is that of an
    attention that stands in torch's place.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    causal: bool
    scale: float | None
    out: Tensor
    again: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    exact: bool = True
    name: str | None = None


Listener = Callable[[nn.Module, Told], None]
"""Is told the module that runs, and of its call."""


def uncompiled(function: F) -> F:
    """`function` as it is, where a compiled model's graph breaks."""
    compiler: Any = torch.compiler
    return compiler.disable(function)


class _Entry(NamedTuple):
    """A module that runs; without one, and without attention, whatever runs is torch's own."""

    module: nn.Module | None
    attend: Attend | None = None
    watch: Listener | None = None


class _Running(threading.local):
    """The modules of swapped and watched models that run, innermost last."""

    def __init__(self) -> None:
        self.stack: list[_Entry] = []
        self.fast_path = True

    @property
    def attend(self) -> Attend | None:
        """What stands in for attention; whoever only watches does not."""
        return next((e.attend for e in reversed(self.stack) if e.watch is None), None)

    def watches(self) -> dict[Listener, nn.Module]:
        """All that watch, each with the innermost module that it watches."""
        found: dict[Listener, nn.Module] = {}
        for entry in reversed(self.stack):
            if entry.module is None:
                break
            if entry.watch is not None:
                found.setdefault(entry.watch, entry.module)
        return found

    def tell(self, told: Told) -> Tensor:
        """Tell all that watch of a call; its output."""
        for watch, module in self.watches().items():
            watch(module, told)
        return told.out

    def enter(self, entry: _Entry) -> None:
        if not self.stack:  # torch's fused encoder layer for inference is a way around the doors
            self.fast_path = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
        self.stack.append(entry)

    def leave(self, entry: _Entry) -> None:
        """Undo `enter`, if it was called: an earlier hook may have failed."""
        if self.stack and self.stack[-1] == entry:
            self._keep(self.stack[:-1])

    def forget(self, watch: Listener) -> None:
        """Whoever stops to watch while modules run hears of no module that it left."""
        self._keep([entry for entry in self.stack if entry.watch != watch])

    def _keep(self, stack: list[_Entry]) -> None:
        if self.stack and not stack:
            torch.backends.mha.set_fastpath_enabled(self.fast_path)
        self.stack = stack


RUNNING = _Running()


@contextlib.contextmanager
def outside() -> Generator[None]:
    """Attention that is called inside is torch's own, whichever model runs."""
    RUNNING.enter(_Entry(None))
    try:
        yield
    finally:
        RUNNING.leave(_Entry(None))


def running(model: nn.Module, attend: Attend) -> contextlib.AbstractContextManager[None]:
    """While a module of `model` runs, also where a checkpoint runs it again, `attend` stands in."""

    @uncompiled
    def enter(module: nn.Module, *_: Any) -> None:
        RUNNING.enter(_Entry(module, attend=attend))

    @uncompiled
    def leave(module: nn.Module, *_: Any) -> None:
        RUNNING.leave(_Entry(module, attend=attend))

    return _marked(model.modules(), enter, leave)


@contextlib.contextmanager
def watching(
    model: nn.Module, watch: Listener, *, compiled: bool = True, besides: Collection[nn.Module] = ()
) -> Generator[None]:
    """While a module of `model` runs, `watch` is told of each call, and changes nothing.

    With `compiled`, the graph of a compiled model breaks to tell. Without, nothing is told from
    inside a graph, and the graph is what it was; nor are modules in eval mode looked at, whose
    fused layers then stay what they are. A copy of the model that is made meanwhile is not watched.
    Modules `besides`, and scripted ones, stay as they are.
    """

    def enter(module: nn.Module, *_: Any) -> None:
        if compiled or (module.training and not torch.compiler.is_compiling()):
            RUNNING.enter(_Entry(module, watch=watch))

    def leave(module: nn.Module, *_: Any) -> None:
        if compiled or not torch.compiler.is_compiling():
            RUNNING.leave(_Entry(module, watch=watch))

    hooks = (uncompiled(enter), uncompiled(leave)) if compiled else (Hook(enter), Hook(leave))
    try:
        with _marked([m for m in model.modules() if m not in besides], *hooks):
            yield
    finally:
        RUNNING.forget(watch)


@contextlib.contextmanager
def _marked(
    modules: Iterable[nn.Module], enter: Callable[..., None], leave: Callable[..., None]
) -> Generator[None]:
    hooks: list[Any] = []
    try:
        for module in modules:
            if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                continue
            hooks.append(module.register_forward_pre_hook(enter))
            hooks.append(module.register_forward_hook(leave, prepend=True, always_call=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def compiled_anew(model: nn.Module) -> Generator[None]:
    """Forget what was compiled: it knows neither the hooks nor that torch's function changed."""
    compiled = any(
        hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) for m in model.modules()
    )
    if not compiled:
        yield
        return
    torch.compiler.reset()
    try:
        yield
    finally:
        torch.compiler.reset()
