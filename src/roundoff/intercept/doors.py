"""The doors by which another attention, or an onlooker, enters a model while a context is open.

torch's `scaled_dot_product_attention` and transformers' `AttentionInterface` are one for the
whole process, so what stands in them asks which model runs: hooks of its modules say so.
diffusers' processors belong to one module each, and are led to torch's door.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import sys
import threading
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from roundoff.errors import UnsupportedError, UsageError

__all__ = [
    "Attend", "Watch", "compiled_anew", "diffusers_door", "outside", "running", "torch_door",
    "transformers_door", "watching",
]  # fmt: skip

NAME = "roundoff"
"""What the attention of a swapped model is called in transformers' tables."""

Attend = Callable[..., Tensor]
Watch = Callable[..., None]
"""Is told the module that runs, q, k, v, and `mask`, `causal`, `scale` of a call."""
F = TypeVar("F", bound=Callable[..., Any])


def _uncompiled(function: F) -> F:
    """`function` as it is, where a compiled model's graph breaks."""
    compiler: Any = torch.compiler
    return compiler.disable(function)


class _Entry(NamedTuple):
    """A module that runs; without one, and without attention, whatever runs is torch's own."""

    module: nn.Module | None
    attend: Attend | None = None
    watch: Watch | None = None


class _Running(threading.local):
    """The modules of swapped and watched models that run, innermost last."""

    def __init__(self) -> None:
        self.stack: list[_Entry] = []
        self.fast_path = True

    @property
    def attend(self) -> Attend | None:
        """What stands in for attention; whoever only watches does not."""
        return next((e.attend for e in reversed(self.stack) if e.watch is None), None)

    def tell(self, q: Tensor, k: Tensor, v: Tensor, **how: Any) -> None:
        """Tell all that watch of a call, each once, with the innermost module that it watches."""
        told: list[Watch] = []
        for entry in reversed(self.stack):
            if entry.module is None:
                return
            if entry.watch is not None and entry.watch not in told:
                told.append(entry.watch)
                entry.watch(entry.module, q, k, v, **how)

    def enter(self, entry: _Entry) -> None:
        if not self.stack:  # torch's fused encoder layer for inference is a way around the doors
            self.fast_path = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
        self.stack.append(entry)

    def leave(self, entry: _Entry) -> None:
        """Undo `enter`, if it was called: an earlier hook may have failed."""
        if self.stack and self.stack[-1] == entry:
            self.stack.pop()
            if not self.stack:
                torch.backends.mha.set_fastpath_enabled(self.fast_path)


_RUNNING = _Running()
_TORCH: Any = functional.scaled_dot_product_attention
_LOCK = threading.Lock()


class _Open:
    """How many contexts hold a door of the whole process open."""

    def __init__(self) -> None:
        self.count = 0

    @contextlib.contextmanager
    def held(self, open: Callable[[], object], close: Callable[[], object]) -> Generator[None]:
        with _LOCK:
            self.count += 1
            open()
        try:
            yield
        finally:
            with _LOCK:
                self.count -= 1
                if not self.count:
                    close()


_TORCH_OPEN, _TRANSFORMERS_OPEN = _Open(), _Open()


@contextlib.contextmanager
def outside() -> Generator[None]:
    """Attention that is called inside is torch's own, whichever model runs."""
    _RUNNING.enter(_Entry(None))
    try:
        yield
    finally:
        _RUNNING.leave(_Entry(None))


def running(model: nn.Module, attend: Attend) -> contextlib.AbstractContextManager[None]:
    """While a module of `model` runs, also where a checkpoint runs it again, `attend` stands in."""
    return _marked(model, lambda module: _Entry(module, attend=attend))


def watching(model: nn.Module, watch: Watch) -> contextlib.AbstractContextManager[None]:
    """While a module of `model` runs, `watch` is told of each call, and changes nothing."""
    return _marked(model, lambda module: _Entry(module, watch=watch))


@contextlib.contextmanager
def _marked(model: nn.Module, entry: Callable[[nn.Module], _Entry]) -> Generator[None]:
    @_uncompiled
    def enter(module: nn.Module, *_: Any) -> None:
        _RUNNING.enter(entry(module))

    @_uncompiled
    def leave(module: nn.Module, *_: Any) -> None:
        _RUNNING.leave(entry(module))

    hooks: list[Any] = []
    try:
        for module in model.modules():
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


# -- torch


def torch_door() -> contextlib.AbstractContextManager[None]:
    """`torch.nn.functional.scaled_dot_product_attention` asks which model runs."""
    return _TORCH_OPEN.held(
        lambda: setattr(functional, "scaled_dot_product_attention", _of_torch),
        lambda: setattr(functional, "scaled_dot_product_attention", _TORCH),
    )


@_uncompiled
def _of_torch(  # noqa: PLR0917 - torch's own signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    attend = _RUNNING.attend
    _RUNNING.tell(query, key, value, mask=attn_mask, causal=is_causal, scale=scale)
    if attend is None:
        return _TORCH(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    _refuse(dropout=dropout_p)
    if query.ndim not in (3, 4):
        raise UsageError(f"q {tuple(query.shape)}: expected 3 or 4 axes")
    if query.ndim == 4:
        return attend(query, key, value, mask=attn_mask, causal=is_causal, scale=scale)
    # [heads, length, head_dim], or batches of one head: the same thing
    query, key, value = (x.unsqueeze(0) for x in (query, key, value))
    return attend(query, key, value, mask=attn_mask, causal=is_causal, scale=scale).squeeze(0)


def _refuse(**given: Any) -> None:
    if asked := [name for name, value in given.items() if value]:
        raise UnsupportedError(
            f"attention with {' and '.join(asked)} cannot be swapped; expected "
            "softmax(QK^T * scale + mask) V and nothing else"
        )


# -- transformers: a module reads the name of its attention in its configuration


@contextlib.contextmanager
def transformers_door(model: nn.Module) -> Generator[None]:
    """Give the modules copies of their configurations, in which the attention is ours."""
    modeling: Any = sys.modules.get("transformers.modeling_utils")
    if modeling is None:
        yield
        return
    masking: Any = importlib.import_module("transformers.masking_utils")
    tables = (modeling.AttentionInterface, masking.AttentionMaskInterface)

    def register() -> None:
        for table, function in zip(tables, (_of_transformers, masking.sdpa_mask), strict=True):
            table.register(NAME, function)

    def unregister() -> None:
        for table in tables:
            table._global_mapping.pop(NAME, None)

    with _TRANSFORMERS_OPEN.held(register, unregister), _configured(model):
        yield


@contextlib.contextmanager
def _configured(model: nn.Module) -> Generator[None]:
    before: dict[nn.Module, Any] = {}
    copies: dict[int, Any] = {}
    try:
        for module in model.modules():
            config = getattr(module, "config", None)
            if hasattr(config, "_attn_implementation_internal"):
                before[module] = config
                if id(config) not in copies:
                    copies[id(config)] = copy.copy(config)
                    copies[id(config)]._attn_implementation_internal = NAME
                module.config = copies[id(config)]
        yield
    finally:
        for module, config in before.items():
            module.config = config


@_uncompiled
def _of_transformers(  # noqa: PLR0917 - transformers' own signature
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    known = ("softcap", "s_aux", "sinks", "position_bias")
    _refuse(dropout=dropout, **{name: more.get(name) is not None for name in known})
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", True))
    # A single query sees all keys; where there is a mask, the causal part is in it.
    causal = is_causal and attention_mask is None and query.shape[-2] > 1
    if causal:
        key, value = key[:, :, : query.shape[-2]], value[:, :, : query.shape[-2]]
    attend = _RUNNING.attend
    assert attend is not None, "the hooks of a swapped model say that it runs"
    _RUNNING.tell(query, key, value, mask=attention_mask, causal=causal, scale=scaling)
    out = attend(query, key, value, mask=attention_mask, causal=causal, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


# -- diffusers


@contextlib.contextmanager
def diffusers_door(model: nn.Module) -> Generator[None]:
    """Processors that compute attention themselves, or by another back-end, call torch's."""
    processing: Any = sys.modules.get("diffusers.models.attention_processor")
    changed: list[tuple[Any, str, Any]] = []

    def change(owner: Any, name: str, value: Any) -> None:
        changed.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    try:
        for module in model.modules() if processing else ():
            processor = getattr(module, "processor", None)
            if type(processor) is processing.AttnProcessor:
                change(module, "processor", processing.AttnProcessor2_0())
            elif getattr(processor, "_attention_backend", None) is not None:
                change(processor, "_attention_backend", "native")
        yield
    finally:
        for owner, name, value in reversed(changed):
            setattr(owner, name, value)
