"""Attention in a sampled step: one sequence of a call is kept, and looked at behind the step."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from roundoff.formats import FORMATS
from roundoff.intercept.doors import watching_doors
from roundoff.intercept.running import Told, watching
from roundoff.kernels.torch_sdpa import kernel_chosen
from roundoff.live.sources import Safely, Seen, in_backward
from roundoff.live.watch import Watch
from roundoff.operators.attention.backward import Gradients
from roundoff.operators.attention.call import Call
from roundoff.operators.attention.catalogue import RECIPES
from roundoff.operators.attention.masks import Mask
from roundoff.operators.attention.observed import ROW_PROBES, ObservedCall
from roundoff.operators.attention.recipe import Recipe
from roundoff.state.random_states import undrawn

__all__ = ["Attention"]


@dataclass(eq=False)
class _Kept:
    """Of one call: its sequence [1,H,N,D], `rows` of its output and of the gradient of that."""

    told: Told
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    sequence: int
    rows: Tensor
    out: Tensor
    dout: Tensor | None = None

    def listen(self, out: Tensor, safely: Safely) -> None:
        """Keep the upstream gradient of the rows, once it comes by."""
        if not out.requires_grad:
            return

        def keep(gradient: Tensor) -> None:
            with safely(), torch.no_grad():
                self.dout = _sequence(gradient, self.sequence)[:, :, self.rows].clone()

        tensor: Any = out
        tensor.register_hook(keep)


class Attention:
    """Calls of attention from modules whose names fit; layers take turns.

    Of a step with several micro-batches the first is looked at.
    """

    def __init__(
        self, watch: Watch, root: nn.Module, modules: Mapping[str, nn.Module], *, seed: int = 0
    ) -> None:
        self.watch, self._root, self._seed = watch, root, seed
        self.safely: Safely = contextlib.nullcontext
        chosen = watch.chosen(modules)
        self._names = {modules[name]: name for name in chosen}
        self.places: dict[str, None] = {}
        """Modules that called attention, in the order in which they first did."""
        self._turn = 0
        self._doors = contextlib.ExitStack()
        self._kept: dict[str, _Kept] = {}

    def begin(self, step: int) -> None:
        """Open the doors."""
        self._kept = {}
        self._dice = torch.Generator().manual_seed((self._seed * 1_000_003 + step) % 2**63)
        known, size = [*self.places], self.watch.layers
        first = self._turn * size
        self._wanted = {known[(first + i) % len(known)] for i in range(min(size, len(known)))}
        with contextlib.ExitStack() as opening:
            opening.enter_context(watching_doors())
            opening.enter_context(watching(self._root, self._watch, compiled=False))
            self._doors = opening.pop_all()

    def before_update(self) -> None:
        """Nothing to do."""

    def end(self, seen: Seen) -> None:
        """Close the doors, and compute what was kept."""
        self._doors.close()
        kept, self._kept = self._kept, {}
        self._turn += bool(kept)
        probes = [ROW_PROBES[name] for name in self.watch.measured]
        for name, one in kept.items():
            call = _observed(one, gradients="gradients" in self.watch.measured)
            with torch.no_grad():
                for probe in probes:
                    state = probe.update(probe.init(), call)
                    seen.put("attention", name, probe, state)

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
        kept = self._kept.get(name)
        if kept is None and not in_backward():
            fresh = name not in self.places
            self.places.setdefault(name)
            room = len(self._kept) < self.watch.layers
            if room and (name in self._wanted or (fresh and not self._wanted)):
                kept = self._kept[name] = self._keep(told)
                kept.listen(told.out, self.safely)
        elif kept is not None and in_backward() and not kept.told.out.requires_grad:
            kept.listen(
                told.out, self.safely
            )  # a reentrant checkpoint runs this call again, with a graph

    def _keep(self, told: Told) -> _Kept:
        with torch.no_grad():
            batch = told.q.shape[0] if told.q.ndim == 4 else 1
            at = int(torch.randint(batch, (), generator=self._dice))
            dtype = told.out.dtype  # autocast may have cast what went in
            q, k, v = (_sequence(x, at).to(dtype).clone() for x in (told.q, told.k, told.v))
            length, most = q.shape[-2], self.watch.rows
            rows = torch.randperm(length, generator=self._dice)[:most].sort().values.to(q.device)
            out = _sequence(told.out, at)[:, :, rows].clone()
            return _Kept(told, q, k, v, _mask(told, at, q, k), at, rows, out)


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
    mask = mask.expand(-1, -1, q.shape[-2], k.shape[-2]).clone()
    return mask if mask.dtype == torch.bool else mask.to(q.dtype)


def _observed(kept: _Kept, *, gradients: bool) -> ObservedCall:
    """What was kept, with the gradients that its kernel makes of the rows."""
    told, (q, k, v) = kept.told, (kept.q, kept.k, kept.v)
    kind = "causal" if told.causal else "none"
    if kept.mask is not None:
        kind = "boolean" if kept.mask.dtype == torch.bool else "additive"
    scale = q.shape[-1] ** -0.5 if told.scale is None else told.scale
    wide = torch.promote_types(q.dtype, torch.float32)
    call = Call(
        q.to(wide), k.to(wide), v.to(wide),
        Mask(kind, tensor=kept.mask), scale, kept.rows,
    )  # fmt: skip
    if not told.exact:
        return ObservedCall(call, _FORMATS[q.dtype], None)
    kernel = kernel_chosen(q, k, v, kept.mask, causal=told.causal, scale=scale)
    wanted = gradients and kept.dout is not None
    return ObservedCall(
        call, _FORMATS[q.dtype], kept.out,
        dout=kept.dout if wanted else None,
        gradients=_backward_again(kept) if wanted else None,
        recipe=_recipe_of(told, kernel),
    )  # fmt: skip


def _recipe_of(told: Told, kernel: str | None) -> Recipe | None:
    """The recipe with the name of what stands in torch's place, else that of torch's kernel."""
    kernel = {"torch-cuda-flash": "fa2"}.get(kernel or "", kernel)
    return next((RECIPES[name] for name in (told.name, kernel) if name and name in RECIPES), None)


def _backward_again(kept: _Kept) -> Gradients:
    """The kernel's gradients of this sequence where the upstream one is 0 outside the rows."""
    assert kept.dout is not None
    flat = kept.told.q.ndim == 3
    leaves = [x.squeeze(0) if flat else x for x in (kept.q, kept.k, kept.v)]
    leaves = [x.detach().requires_grad_() for x in leaves]
    mask = kept.mask.squeeze(0) if flat and kept.mask is not None else kept.mask
    with undrawn(), torch.enable_grad():
        out = kept.told.again(leaves[0], leaves[1], leaves[2], mask)
        upstream = torch.zeros_like(out)
        (upstream[None] if flat else upstream)[:, :, kept.rows] = kept.dout.to(out.dtype)
        autograd: Any = torch.autograd
        found = autograd.grad(out, leaves, upstream)
    dq, dk, dv = (x[None] if flat else x for x in found)
    return Gradients(dq[:, :, kept.rows], dk, dv)


_FORMATS = {f.dtype: f for f in FORMATS.values() if f.dtype is not None}
