"""Swap: the attention of a model is a kernel or a recipe while a context is open.

The doors are the libraries' own: transformers' `AttentionInterface`, diffusers' processors, and
`torch.nn.functional.scaled_dot_product_attention` while a module of the model runs. Each leads
to the attention of its own model, so that several models may be swapped side by side.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import sys
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from roundoff.errors import KernelError, UnsupportedError, UsageError
from roundoff.intercept.attention import AttentionFunction, attention_function

__all__ = ["AttentionFunction", "Calls", "attention_function", "swapped"]

NAME = "roundoff"
"""What the attention of a swapped model is called in transformers' tables."""

Attend = Callable[..., Tensor]
F = TypeVar("F", bound=Callable[..., Any])


def _uncompiled(function: F) -> F:
    """`function` as it is, where a compiled model's graph breaks."""
    compiler: Any = torch.compiler
    return compiler.disable(function)


@dataclass
class Calls:
    """How often the attention of a swapped model was called."""

    count: int = 0


@contextlib.contextmanager
def swapped(model: nn.Module, attention: AttentionFunction | str) -> Generator[Calls]:
    """Let `attention` be the attention of `model` until the end of the block.

    Contexts of different models may be open at once and closed in any order; those of one model
    close inside out. `model` may be wrapped or compiled: a compiled one is compiled again at
    both ends of the block, and leaves its graph at each attention.

    Errors: `KernelError` at the end of the block if attention was never called in it;
    `UnsupportedError` inside for attention that is more than softmax(QK^T * scale + mask) V:
    dropout, soft caps, sinks.

    >>> layer = torch.nn.TransformerEncoderLayer(8, 1, batch_first=True, dropout=0.0)
    >>> with swapped(layer, "fa2@bf16") as calls:
    ...     y = layer(torch.ones(1, 4, 8))
    >>> calls.count
    1
    """
    if isinstance(attention, str):
        attention = attention_function(attention)
    calls = Calls()
    attend = _counted(attention, calls)
    with contextlib.ExitStack() as doors:
        covered = doors.enter_context(_transformers_door(model, attend))
        doors.enter_context(_diffusers_door(model))
        doors.enter_context(_torch_door(model, attend, covered))
        doors.enter_context(_compiled_anew(model))
        yield calls
    if not calls.count:
        raise KernelError(
            f"{attention.name!r} stood in for the attention of {type(model).__name__}, but no "
            "attention was called; looked for transformers' AttentionInterface, diffusers' "
            "attention processors and torch's scaled_dot_product_attention"
        )


def _counted(attention: AttentionFunction, calls: Calls) -> Attend:
    """Count; and let what the attention itself calls be torch's own."""

    @_uncompiled
    def attend(*qkv: Tensor, **how: Any) -> Tensor:
        calls.count += 1
        with _running(None):
            return attention(*qkv, **how)

    return attend


# -- torch: the attention of the innermost module that runs, if it is of a swapped model


class _Running(threading.local):
    def __init__(self) -> None:
        self.stack: list[Attend | None] = []


_RUNNING = _Running()
_TORCH: Any = functional.scaled_dot_product_attention
_OPEN: set[object] = set()
_LOCK = threading.Lock()


@contextlib.contextmanager
def _running(attend: Attend | None) -> Generator[None]:
    _RUNNING.stack.append(attend)
    try:
        yield
    finally:
        _RUNNING.stack.pop()


@_uncompiled
def _routed(  # noqa: PLR0917 - torch's own signature
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    attend = _RUNNING.stack[-1] if _RUNNING.stack else None
    if attend is None:
        return _TORCH(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    _refuse(dropout=dropout_p)
    if query.ndim not in (3, 4):
        raise UsageError(f"q {tuple(query.shape)}: expected 3 or 4 axes")
    if query.ndim == 3:  # [heads, length, head_dim], or batches of one head: the same thing
        query, key, value = (x.unsqueeze(0) for x in (query, key, value))
        return attend(query, key, value, mask=attn_mask, causal=is_causal, scale=scale).squeeze(0)
    return attend(query, key, value, mask=attn_mask, causal=is_causal, scale=scale)


@contextlib.contextmanager
def _torch_door(model: nn.Module, attend: Attend, covered: set[nn.Module]) -> Generator[None]:
    """Mark when a module of `model` runs, also where a checkpoint runs it again."""

    @_uncompiled
    def enter(*_: Any) -> None:
        _RUNNING.stack.append(attend)

    @_uncompiled
    def leave(*_: Any) -> None:
        _RUNNING.stack.pop()

    hooks: list[Any] = []
    key = object()
    _open(key)
    try:
        for module in model.modules():
            if module not in covered:
                hooks.append(module.register_forward_pre_hook(enter))
                hooks.append(module.register_forward_hook(leave, always_call=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        _close(key)


def _open(key: object) -> None:
    with _LOCK:
        _OPEN.add(key)
        functional.scaled_dot_product_attention = _routed


def _close(key: object) -> None:
    with _LOCK:
        _OPEN.discard(key)
        if not _OPEN:
            functional.scaled_dot_product_attention = _TORCH


def _refuse(**given: Any) -> None:
    if asked := [name for name, value in given.items() if value]:
        raise UnsupportedError(
            f"attention with {' and '.join(asked)} cannot be swapped; expected "
            "softmax(QK^T * scale + mask) V and nothing else"
        )


# -- transformers: every module reads the name of its attention in its configuration

_OWNERS: dict[nn.Module, Attend] = {}


@contextlib.contextmanager
def _transformers_door(model: nn.Module, attend: Attend) -> Generator[set[nn.Module]]:
    """Give the modules copies of their configurations, in which the attention is ours."""
    modeling: Any = sys.modules.get("transformers.modeling_utils")
    if modeling is None:
        yield set()
        return
    pretrained = [m for m in model.modules() if isinstance(m, modeling.PreTrainedModel)]
    covered = {m for p in pretrained for m in p.modules()}
    configured = {m: m.config for m in covered if _is_config(getattr(m, "config", None))}
    copies = {id(config): _renamed(config) for config in configured.values()}
    before = {m: _OWNERS.get(m) for m in covered}
    _register(modeling)
    try:
        for module, config in configured.items():
            module.config = copies[id(config)]
        _OWNERS.update(dict.fromkeys(covered, attend))
        yield covered
    finally:
        for module, config in configured.items():
            module.config = config
        for module, owner in before.items():
            if owner is None:
                _OWNERS.pop(module, None)
            else:
                _OWNERS[module] = owner
        if not _OWNERS:
            _unregister(modeling)


def _is_config(config: Any) -> bool:
    return hasattr(config, "_attn_implementation_internal")


def _renamed(config: Any) -> Any:
    copied = copy.copy(config)
    copied._attn_implementation_internal = NAME
    return copied


def _register(modeling: Any) -> None:
    masking: Any = importlib.import_module("transformers.masking_utils")
    modeling.AttentionInterface.register(NAME, _of_transformers)
    masking.AttentionMaskInterface.register(NAME, masking.sdpa_mask)


def _unregister(modeling: Any) -> None:
    masking: Any = importlib.import_module("transformers.masking_utils")
    for table in (modeling.AttentionInterface, masking.AttentionMaskInterface):
        table._global_mapping.pop(NAME, None)


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
    out = _OWNERS[module](query, key, value, mask=attention_mask, causal=causal, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


# -- diffusers: every attention module has a processor


@contextlib.contextmanager
def _diffusers_door(model: nn.Module) -> Generator[None]:
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


@contextlib.contextmanager
def _compiled_anew(model: nn.Module) -> Generator[None]:
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
