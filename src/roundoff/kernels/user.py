"""Any `module:function` (or `path/to/file.py:function`) of the user's as a kernel.

The function is called with the operator's inputs in their dtype and, as far as its
signature names them, with what else the problem says (causal, scale, mask).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from roundoff.errors import KernelError, UnknownNameError, UsageError
from roundoff.kernels.kernel import Kernel, stored_inputs
from roundoff.kernels.limits import Limits
from roundoff.operators.attention.operator import call_of
from roundoff.operators.protocol import Outputs, Problem

__all__ = ["Declared", "kernel", "source_digest", "user_kernel"]

Layout = Literal["bhsd", "bshd"]
F = TypeVar("F", bound=Callable[..., Any])

_CAUSAL = ("causal", "is_causal")
_SCALE = ("scale", "softmax_scale", "sm_scale")
_MASK = ("attn_mask", "mask", "attention_mask")


@dataclass(frozen=True, slots=True)
class Declared:
    """What a user says of a kernel: its layout and its limits."""

    layout: Layout = "bhsd"
    limits: Limits = field(default_factory=Limits)


def kernel(
    *,
    layout: Layout = "bhsd",
    formats: tuple[str, ...] = ("bf16", "fp16", "fp32"),
    head_dims: tuple[int, ...] | None = None,
    masks: tuple[str, ...] = ("none", "causal"),
    seq_multiple: int = 1,
) -> Callable[[F], F]:
    """Declare what an attention kernel takes, where its signature cannot say it.

    `layout` is the order of the axes, bhsd [batch, heads, length, head_dim] or bshd; problems
    outside `formats`, `head_dims`, `masks` or multiples of `seq_multiple` are skipped and named.

    >>> @kernel(layout="bshd", formats=("bf16",), head_dims=(64, 128))
    ... def mine(q, k, v, causal=False): ...
    """

    def declare(function: F) -> F:
        limits = Limits(formats, head_dims, masks, seq_multiple)
        function.__dict__["__roundoff__"] = Declared(layout, limits)
        return function

    return declare


def user_kernel(
    place: str, operator: str, *, layout: Layout | None = None, seq_multiple: int | None = None
) -> Kernel:
    """The function at `place` as a kernel of `operator`; arguments override its declaration."""
    function, module = _load(place)
    declared = getattr(function, "__roundoff__", None) or Declared()
    assert isinstance(declared, Declared)
    adapter = _Adapter(place, function, operator, layout or declared.layout)
    limits = declared.limits
    if seq_multiple is not None:
        limits = Limits(limits.formats, limits.head_dims, limits.masks, seq_multiple)

    def refuses(problem: Problem) -> str | None:
        if operator != "attention":
            return None
        return limits.refuse(problem) or adapter.cannot(problem)

    return Kernel(
        place, operator, inspect.getdoc(function) or "a kernel of yours", adapter.run,
        refuses=refuses, source=source_digest(module),
    )  # fmt: skip


def _load(place: str) -> tuple[Callable[..., Any], ModuleType]:
    where, _, name = place.rpartition(":")
    if not where or not name:
        raise UsageError(f"{place!r} names no kernel; expected module:function or file.py:function")
    try:
        module = _import_file(Path(where)) if where.endswith(".py") else _import(where)
    except Exception as error:
        raise UsageError(
            f"cannot import {where!r} for the kernel {place!r}: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, name):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise UnknownNameError(f"function of {where}", name, public)
    function = getattr(module, name)
    if not callable(function):
        raise UsageError(f"{place!r} is a {type(function).__name__}; expected a function")
    return function, module


def _import(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    return importlib.import_module(name)


def _import_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    name = f"roundoff_user_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.parent))
    return module


def source_digest(module: ModuleType) -> str:
    """The digest of a module's file and of every file of the user's that it reaches.

    Files of installed packages and of the standard library are left out: their versions
    stand in the environment.
    """
    digest = hashlib.sha256()
    for file in sorted({Path(m.__file__ or "") for m in _reach(module)}):
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _reach(module: ModuleType) -> Iterator[ModuleType]:
    seen: set[str] = set()
    todo = [module]
    while todo:
        found = todo.pop()
        if found.__name__ in seen or not _is_users(found):
            continue
        seen.add(found.__name__)
        yield found
        for value in list(vars(found).values()):
            name = value.__name__ if isinstance(value, ModuleType) else _home(value)
            if name in sys.modules:
                todo.append(sys.modules[name])


def _home(value: object) -> str:
    name = getattr(value, "__module__", None)
    return name if isinstance(name, str) else ""


_INSTALLED = tuple(
    str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "purelib", "platlib")
)
_OURS = str(Path(__file__).resolve().parents[1])


def _is_users(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    if not file:
        return False
    return not str(Path(file).resolve()).startswith((*_INSTALLED, _OURS))


class _Adapter:
    """Calls a user's function with what its signature asks for."""

    def __init__(
        self, name: str, function: Callable[..., Any], operator: str, layout: Layout
    ) -> None:
        self.name, self.function, self.operator, self.layout = name, function, operator, layout
        try:
            self.known = set(inspect.signature(function).parameters)
        except (TypeError, ValueError):
            self.known = set[str]()  # a C function says nothing: it gets the inputs alone

    def run(self, problem: Problem) -> Outputs:
        """Call the function; a tuple's first element is the first output."""
        stored = stored_inputs(problem)
        if self.operator == "attention":
            arguments = [self._turned(stored[name]) for name in "qkv"]
            result = self.function(*arguments, **self._extras(problem, stored))
            return {"out": self._turned(self._tensor(result))}
        first = next(iter(stored))
        return {"y": self._tensor(self.function(stored[first]))}

    def cannot(self, problem: Problem) -> str | None:
        """What the problem asks for and the function has no parameter for."""
        call = call_of(problem)
        if call.mask.kind == "causal" and not self._named(_CAUSAL) and not self._named(_MASK):
            return "mask causal (the function has no parameter 'causal' or 'attn_mask')"
        if call.mask.kind not in ("none", "causal") and not self._named(_MASK):
            return f"mask {call.mask.kind} (the function has no parameter 'attn_mask')"
        if problem.parameters["scale"] is not None and not self._named(_SCALE):
            return "a scale of its own (the function has no parameter 'scale')"
        return None

    def _extras(self, problem: Problem, stored: Mapping[str, Tensor]) -> dict[str, Any]:
        call = call_of(problem)
        extras: dict[str, Any] = {}
        if problem.parameters["scale"] is not None and (name := self._named(_SCALE)):
            extras[name] = call.scale
        if call.mask.kind == "none":
            return extras
        if call.mask.kind == "causal" and (name := self._named(_CAUSAL)):
            return extras | {name: True}
        dense = call.mask.dense(call.lengths, call.q.device)
        if dense is not None and dense.dtype != torch.bool:
            dense = dense.to(stored["q"].dtype)
        name = self._named(_MASK)
        return extras if name is None else extras | {name: dense}

    def _named(self, names: tuple[str, ...]) -> str | None:
        return next((name for name in names if name in self.known), None)

    def _turned(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).contiguous() if self.layout == "bshd" and x.ndim == 4 else x

    def _tensor(self, result: object) -> Tensor:
        first = result[0] if isinstance(result, tuple | list) and result else result
        if not isinstance(first, Tensor):
            raise KernelError(
                f"kernel {self.name!r} returned a {type(first).__name__}; "
                "expected a tensor, or a tuple that begins with one"
            )
        return first
