"""Attention in a sampled step: one sequence of a call is kept, and looked at behind the step."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from roundoff.formats import format_of
from roundoff.intercept.doors import watching_doors
from roundoff.intercept.running import Told, watching
from roundoff.kernels.torch_sdpa import backends_enabled, kernel_chosen
from roundoff.live.compiled import compiled_modules, in_sight
from roundoff.live.left_out import LeftOut, some
from roundoff.live.sources import Safely, Seen, in_backward
from roundoff.live.watch import Watch
from roundoff.operators.attention.backward import Gradients
from roundoff.operators.attention.call import Call
from roundoff.operators.attention.catalogue import RECIPES
from roundoff.operators.attention.masks import Mask
from roundoff.operators.attention.observed import ROW_PROBES, ObservedCall
from roundoff.operators.attention.recipe import Recipe

__all__ = ["AttentionCalls"]

_LOG = logging.getLogger("roundoff")


@dataclass(frozen=True, eq=False)
class _How:
    """What is to be known of a call besides its tensors; none of its graph.

    `kernel` is what torch would have chosen there, `backends` what it could choose from.
    """

    shape: torch.Size
    causal: bool
    scale: float
    exact: bool
    differentiable: bool
    again: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
    name: str | None
    kernel: str | None
    backends: tuple[SDPBackend, ...]


@dataclass(eq=False)
class _Kept:
    """Of one call: its sequence [1,H,N,D], `rows` of its output and of the gradient of that."""

    how: _How
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    sequence: int
    rows: Tensor
    out: Tensor
    dout: Tensor | None = None

    def awaits(self, told: Told) -> bool:
        """Whether a reentrant checkpoint runs this call again, now with a graph."""
        unheard = not self.how.differentiable and self.dout is None
        return unheard and told.q.shape == self.how.shape

    def listen(self, out: Tensor, safely: Safely) -> None:
        """Keep the upstream gradient of the rows, once it comes by."""
        if not out.requires_grad:
            return

        def keep(gradient: Tensor) -> None:
            with safely(), torch.no_grad():
                if self.dout is None:  # of several micro-batches, the first
                    self.dout = _sequence(gradient, self.sequence)[:, :, self.rows].clone()

        tensor: Any = out
        tensor.register_hook(keep)


class AttentionCalls:
    """Calls of attention from modules whose names fit; layers take turns.

    Of a step with several micro-batches the first is looked at.
    """

    def __init__(self, watch: Watch, root: nn.Module) -> None:
        self.watch, self._root = watch, root
        self.safely: Safely = contextlib.nullcontext
        self.places: dict[str, None] = {}
        """Modules that called attention, in the order in which they first did."""
        self._names: dict[nn.Module, str] = {}
        self._left_out, self._told = LeftOut(watch.of), set[str]()
        self._turn = 0
        self._doors = contextlib.ExitStack()
        self._kept: dict[str, _Kept] = {}

    def begin(self, step: int) -> None:
        """Open the doors, for the modules that there are now."""
        self._kept = {}
        self._dice = torch.Generator().manual_seed(step)
        known, size = [*self.places], self.watch.layers
        first = self._turn * size
        self._wanted = {known[(first + i) % len(known)] for i in range(min(size, len(known)))}
        seen = in_sight(self._root, self.watch, self._left_out)
        self._names = {module: name for name, module in seen.items()}
        besides = compiled_modules(self._root)
        with contextlib.ExitStack() as opening:
            opening.enter_context(watching_doors())
            onlooker = watching(self._root, self._watch, compiled=False, besides=besides)
            opening.enter_context(onlooker)
            self._doors = opening.pop_all()

    def before_update(self) -> None:
        """Nothing to do."""

    def end(self, seen: Seen) -> None:
        """Close the doors, and compute what was kept."""
        self._doors.close()
        kept, self._kept = self._kept, {}
        self._turn += 1
        probes = [ROW_PROBES[name] for name in self.watch.measured]
        for probe in probes:
            seen.put("attention", "", probe, None)
        for name, one in kept.items():
            call = _observed(one, gradients="gradients" in self.watch.measured)
            with torch.no_grad():
                for probe in probes:
                    if call.out is None and probe.name != "logits":
                        continue
                    state = probe.update(probe.init(), call)
                    seen.put("attention", name, probe, state)
        self._left_out.say(read=bool(kept))
        self._say_what_is_missing(kept)

    def _say_what_is_missing(self, kept: dict[str, _Kept]) -> None:
        """Once, where there is nothing to be had."""
        if not self.places:
            self._say(
                "no attention was seen in a sampled step: no module that fits %r called torch's "
                "scaled_dot_product_attention, or a function registered with transformers",
                self.watch.names,
            )
        if inexact := [name for name, one in kept.items() if not one.how.exact]:
            self._say(
                "attention of %s has no error and no ratio: golden does not compute dropout, "
                "a soft cap, sinks or a bias of positions", some(inexact),
            )  # fmt: skip

    def _say(self, text: str, what: str) -> None:
        if text not in self._told:
            self._told.add(text)
            _LOG.warning("monitor: " + text, what)

    def drop(self) -> None:
        """Close the doors, and forget."""
        self._doors.close()
        self._kept = {}

    def _watch(self, module: nn.Module, told: Told) -> None:
        with self.safely():
            self._look(module, told)

    def _look(self, module: nn.Module, told: Told) -> None:
        name = self._names.get(module)
        if name is None or not self._root.training:
            return
        kept, again = self._kept.get(name), in_backward()
        if kept is None and not again:
            fresh = name not in self.places
            self.places.setdefault(name)
            room = len(self._kept) < self.watch.layers
            if room and (name in self._wanted or (fresh and not self._wanted)):
                kept = self._kept[name] = self._keep(told)
                kept.listen(told.out, self.safely)
        elif kept is not None and again and kept.awaits(told):
            kept.listen(told.out, self.safely)

    def _keep(self, told: Told) -> _Kept:
        with torch.no_grad():
            batch = told.q.shape[0] if told.q.ndim == 4 else 1
            at = int(torch.randint(batch, (), generator=self._dice))
            dtype = told.out.dtype  # autocast may have cast what went in
            q, k, v = (_sequence(x, at).to(dtype).clone() for x in (told.q, told.k, told.v))
            length, most = q.shape[-2], self.watch.rows
            rows = torch.randperm(length, generator=self._dice)[:most].sort().values
            rows = rows.to(q.device, non_blocking=True)
            out = _sequence(told.out, at)[:, :, rows].clone()
            return _Kept(_how(told, dtype), q, k, v, _mask(told, at, q, k), at, rows, out)


def _how(told: Told, dtype: torch.dtype) -> _How:
    """What of a call must be asked while it runs."""
    scale = told.q.shape[-1] ** -0.5 if told.scale is None else told.scale
    q, k, v = (x.to(dtype) if x.ndim == 4 else x.to(dtype)[None] for x in (told.q, told.k, told.v))
    kernel = kernel_chosen(q, k, v, told.mask, causal=told.causal, scale=scale)
    return _How(
        told.q.shape, told.causal, scale, told.exact, told.out.requires_grad, told.again, told.name,
        kernel, backends_enabled(),
    )  # fmt: skip


def _sequence(x: Tensor, at: int) -> Tensor:
    """One sequence [1,H,N,D] of a batch; three axes are heads of one."""
    x = x.detach()
    return x[at : at + 1] if x.ndim == 4 else x[None]


def _mask(told: Told, at: int, q: Tensor, k: Tensor) -> Tensor | None:
    """The mask of one sequence, [1,H | 1,N,M]; one that is added in the dtype of q."""
    if told.mask is None:
        return None
    mask = told.mask.detach()
    while mask.ndim < 4:
        mask = mask[None]
    mask = mask[at : at + 1] if mask.shape[0] > 1 else mask
    mask = mask.clone() if mask.dtype == torch.bool else mask.to(q.dtype, copy=True)
    return mask.expand(-1, -1, q.shape[-2], k.shape[-2])


def _observed(kept: _Kept, *, gradients: bool) -> ObservedCall:
    """What was kept, with the gradients that its kernel makes of the rows."""
    how, (q, k, v) = kept.how, (kept.q, kept.k, kept.v)
    kind = "causal" if how.causal else "none"
    if kept.mask is not None:
        kind = "boolean" if kept.mask.dtype == torch.bool else "additive"
    wide = torch.promote_types(q.dtype, torch.float32)
    mask = Mask(kind, tensor=kept.mask)
    call = Call(q.to(wide), k.to(wide), v.to(wide), mask, how.scale, kept.rows)
    if not how.exact:
        return ObservedCall(call, format_of(q), None)
    wanted = gradients and kept.dout is not None
    return ObservedCall(
        call, format_of(q), kept.out,
        dout=kept.dout if wanted else None,
        gradients=_backward_again(kept) if wanted else None,
        recipe=_recipe_of(how),
    )  # fmt: skip


def _recipe_of(how: _How) -> Recipe | None:
    """The recipe with the name of what stands in torch's place, else that of torch's kernel."""
    kernel = {"torch-cuda-flash": "fa2"}.get(how.kernel or "", how.kernel)
    return next((RECIPES[name] for name in (how.name, kernel) if name and name in RECIPES), None)


def _backward_again(kept: _Kept) -> Gradients:
    """The kernel's gradients of this sequence where the upstream one is 0 outside the rows."""
    assert kept.dout is not None
    flat = len(kept.how.shape) == 3
    leaves = [x.squeeze(0) if flat else x for x in (kept.q, kept.k, kept.v)]
    leaves = [x.detach().requires_grad_() for x in leaves]
    mask = kept.mask.squeeze(0) if flat and kept.mask is not None else kept.mask
    with torch.enable_grad(), sdpa_kernel([*kept.how.backends]):
        out = kept.how.again(leaves[0], leaves[1], leaves[2], mask)
        upstream = torch.zeros_like(out)
        (upstream[None] if flat else upstream)[:, :, kept.rows] = kept.dout.to(out.dtype)
        autograd: Any = torch.autograd
        found = autograd.grad(out, leaves, upstream)
    dq, dk, dv = (x[None] if flat else x for x in found)
    return Gradients(dq[:, :, kept.rows], dk, dv)
