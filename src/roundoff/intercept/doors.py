"""The doors by which another attention, or an onlooker, enters a model while a context is open.

torch's function and transformers' table are one for the whole process: what stands in them asks
`running` which model runs. diffusers' processors belong to one module each, and are led to
torch's door.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from roundoff.errors import UnsupportedError, UsageError
from roundoff.intercept.running import RUNNING, Told, outside, uncompiled

__all__ = ["diffusers_door", "torch_door", "transformers_door", "watching_doors"]

NAME = "roundoff"
"""What the attention of a swapped model is called in transformers' tables."""

MORE = ("softcap", "s_aux", "sinks", "position_bias")
"""What attention functions of transformers may be asked for beyond softmax(QK^T + mask) V."""

_TORCH: Any = functional.scaled_dot_product_attention


class _Behind(threading.local):
    """Whether what stands behind torch's door is being called, and may call us again."""

    called = False


_BEHIND = _Behind()
_LOCK = threading.Lock()
_STANDING: list[Any] = [_TORCH]
"""What stands behind torch's door: what was in its place when the door was opened."""


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


_TORCH_OPEN, _TORCH_SEEN, _TRANSFORMERS_OPEN, _TABLE_SEEN = _Open(), _Open(), _Open(), _Open()


# -- torch


def torch_door() -> contextlib.AbstractContextManager[None]:
    """`torch.nn.functional.scaled_dot_product_attention` asks which model runs."""
    return _TORCH_OPEN.held(_set_torch, _set_torch)


def _set_torch() -> None:
    """Put in torch's place what the open contexts need; onlookers alone are no swap.

    What stood there, torch's own or a user's, is called behind ours and comes back at the end. What
    a user puts there meanwhile stays.
    """
    standing: Any = functional.scaled_dot_product_attention
    ours = standing in (_of_torch, _seen_of_torch)
    if _TORCH_OPEN.count or _TORCH_SEEN.count:
        if not ours:
            _STANDING[0] = standing
        functional.scaled_dot_product_attention = _of_torch if _TORCH_OPEN.count else _seen_of_torch
    elif ours:
        functional.scaled_dot_product_attention = _STANDING[0]


def _behind(*args: Any, **options: Any) -> Tensor:
    """What stands behind our door; from inside of it, torch's own."""
    if _BEHIND.called:
        return _TORCH(*args, **options)
    _BEHIND.called = True
    try:
        return _STANDING[0](*args, **options)
    finally:
        _BEHIND.called = False


def _seen_of_torch(*args: Any, **options: Any) -> Tensor:
    """What a compiled graph may hold as it is, and is told of outside of one."""
    if torch.compiler.is_compiling():
        return _STANDING[0](*args, **options)
    return _of_torch(*args, **options)


@uncompiled
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
    attend, how = RUNNING.attend, (attn_mask, is_causal, scale)
    if attend is not None:
        _refuse(dropout=dropout_p)
        if query.ndim not in (3, 4):
            raise UsageError(f"q {tuple(query.shape)}: expected 3 or 4 axes")

    def again(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if attend is None:
            how = {"scale": scale, "enable_gqa": enable_gqa}
            return _behind(q, k, v, mask, dropout_p, is_causal, **how)
        if q.ndim == 4:
            return attend(q, k, v, mask=mask, causal=is_causal, scale=scale)
        # [heads, length, head_dim], or batches of one head: the same thing
        q, k, v = (x.unsqueeze(0) for x in (q, k, v))
        return attend(q, k, v, mask=mask, causal=is_causal, scale=scale).squeeze(0)

    out = again(query, key, value, attn_mask)
    name = None if attend is None else attend.name
    return RUNNING.tell(Told(query, key, value, *how, out, again, not dropout_p, name))


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


@uncompiled
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
    _refuse(dropout=dropout, **{name: more.get(name) is not None for name in MORE})
    causal = _causal(module, is_causal, query, attention_mask)
    if causal:
        key, value = key[:, :, : query.shape[-2]], value[:, :, : query.shape[-2]]
    attend = RUNNING.attend
    assert attend is not None, "the hooks of a swapped model say that it runs"

    def again(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return attend(q, k, v, mask=mask, causal=causal, scale=scaling)

    out = again(query, key, value, attention_mask)
    RUNNING.tell(
        Told(query, key, value, attention_mask, causal, scaling, out, again, name=attend.name)
    )
    return out.transpose(1, 2).contiguous(), None


def _causal(module: nn.Module, is_causal: bool | None, query: Tensor, mask: Tensor | None) -> bool:
    """A single query sees all keys; where there is a mask, the causal part is in it."""
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", True))
    return is_causal and mask is None and query.shape[-2] > 1


# -- transformers: attention functions that users have registered


@contextlib.contextmanager
def watching_doors() -> Generator[None]:
    """Torch's function, and those registered with transformers, tell of their calls."""
    with _TORCH_SEEN.held(_set_torch, _set_torch), _TABLE_SEEN.held(_set_table, _unset_table):
        yield


_TABLE: dict[str, Any] = {}
"""Functions of transformers' table, while others stand there that tell of them."""


def _table() -> dict[str, Any]:
    modeling: Any = sys.modules.get("transformers.modeling_utils")
    return {} if modeling is None else modeling.ALL_ATTENTION_FUNCTIONS._global_mapping


def _set_table() -> None:
    table = _table()
    for name, function in [*table.items()]:
        # Torch's and our own are seen at their own doors.
        if name not in (NAME, "sdpa") and not isinstance(function, _Seen):
            _TABLE[name] = function
            table[name] = _Seen(_seen_of_transformers, function)


def _unset_table() -> None:
    table = _table()
    for name, function in _TABLE.items():
        if isinstance(table.get(name), _Seen):  # else a user has put another there
            table[name] = function
    _TABLE.clear()


class _Seen(functools.partial[Any]):
    """One of transformers' functions that is told of."""


def _seen_of_transformers(function: Any, *args: Any, **options: Any) -> Any:
    if torch.compiler.is_compiling() or not RUNNING.watches():
        return function(*args, **options)
    return _tell_of(function, *args, **options)


@uncompiled
def _tell_of(
    function: Any, module: nn.Module, query: Tensor, key: Tensor, value: Tensor,
    attention_mask: Tensor | None, **options: Any,
) -> Any:  # fmt: skip
    with outside():
        found = function(module, query, key, value, attention_mask, **options)

    def again(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        with outside():
            return function(module, q, k, v, mask, **options)[0].transpose(1, 2)

    if not _is_plain(attention_mask, options):
        return found
    causal = _causal(module, options.get("is_causal"), query, attention_mask)
    how = attention_mask, causal, options.get("scaling")
    # What is told lies on the way of the gradients: a view beside it would never see one.
    out = found[0].transpose(1, 2)
    RUNNING.tell(Told(query, key, value, *how, out, again, exact=not options.get("dropout")))
    return out.transpose(1, 2), *found[1:]


def _is_plain(mask: Tensor | None, options: Mapping[str, Any]) -> bool:
    """Whether all that bears on the call is in its tensors, and in a mask as torch's function has.

    A window is in the mask where there is one; FlashAttention's functions take it as a number.
    """
    if mask is None:
        packed = [name for name in options if name.startswith("cu_seq_lens")]
        if options.get("sliding_window") is not None or any(options[n] is not None for n in packed):
            return False
    return (mask is None or mask.ndim == 4) and all(options.get(name) is None for name in MORE)


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
