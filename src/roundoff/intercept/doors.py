"""The doors by which another attention enters a model while a context is open.

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
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from roundoff.errors import UnsupportedError, UsageError

__all__ = ["Attend", "diffusers_door", "outside", "running", "torch_door", "transformers_door"]

NAME = "roundoff"
"""What the attention of a swapped model is called in transformers' tables."""

Attend = Callable[..., Tensor]
F = TypeVar("F", bound=Callable[..., Any])


def _uncompiled(function: F) -> F:
    """`function` as it is, where a compiled model's graph breaks."""
    compiler: Any = torch.compiler
    return compiler.disable(function)


class _Running(threading.local):
    """The modules of swapped models that run, innermost last, each with its attention."""

    def __init__(self) -> None:
        self.stack: list[tuple[nn.Module | None, Attend | None]] = []
        self.fast_path = True

    @property
    def attend(self) -> Attend | None:
        return self.stack[-1][1] if self.stack else None

    def enter(self, module: nn.Module | None, attend: Attend | None) -> None:
        if not self.stack:  # torch's fused encoder layer for inference is a way around the doors
            self.fast_path = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
        self.stack.append((module, attend))

    def leave(self, module: nn.Module | None, attend: Attend | None) -> None:
        """Undo `enter`, if it was called: an earlier hook may have failed."""
        if self.stack and self.stack[-1] == (module, attend):
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
    _RUNNING.enter(None, None)
    try:
        yield
    finally:
        _RUNNING.leave(None, None)


@contextlib.contextmanager
def running(model: nn.Module, attend: Attend) -> Generator[None]:
    """Mark when a module of `model` runs, also where a checkpoint runs it again."""

    @_uncompiled
    def enter(module: nn.Module, *_: Any) -> None:
        _RUNNING.enter(module, attend)

    @_uncompiled
    def leave(module: nn.Module, *_: Any) -> None:
        _RUNNING.leave(module, attend)

    hooks: list[Any] = []
    try:
        for module in model.modules():
            hooks.append(module.register_forward_pre_hook(enter))
            hooks.append(module.register_forward_hook(leave, prepend=True, always_call=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()


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
