"""Shadow: the direct error of a candidate in anybody's training loop, which stays as it is.

At a sampled call the candidate's gradient is taken first and put aside, without touching
`.grad`, random states or buffers; the baseline's comes by itself, with the loop's own
backward pass.
"""

from __future__ import annotations

import contextlib
import math
import traceback
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor, nn

from roundoff.errors import CandidateError, UnknownNameError, UnsupportedError, UsageError, told
from roundoff.metrics.direct import DirectError, Reduced, reduced
from roundoff.metrics.noise_or_bias import ALPHA, Judgement, judge
from roundoff.training.processes import of_all_processes, undistributed
from roundoff.training.redraw import FEWEST, KEPT, redrawn
from roundoff.training.undisturbed import undisturbed
from roundoff.training.variants import AS_IT_IS, Variant, Way, parameters, variant

__all__ = ["REDRAWN", "Shadow", "scalar", "shadow"]

REDRAWN = 5
"""One sample in so many is taken at redrawn weights, and costs a second backward pass."""

APART = 0.01
"""The baseline's own gradient, taken twice, may differ by so much of itself, and no more."""

FAR = 2.0
"""Redrawing must move the gradient so many times further than the candidate does."""

Gradients = dict[str, Tensor]
LossOf = Callable[[nn.Module], Tensor]
Kept = tuple[Gradients, Gradients | None]
"""A candidate's gradients, and at redrawn weights the baseline's there; both of the loss itself."""


@dataclass(eq=False)
class _Pending:
    """A sampled call whose backward pass is still to come: gradients of `scale` times the loss.

    `candidates` are their gradients at a plain sample. `own` is the baseline's, taken like a
    candidate's: at redrawn weights, where `size` is the largest ||x||^2 of a candidate, or once
    at the weights themselves; `moved` and `norm` are the sums of ||own - g||^2 and ||g||^2.
    Gradients that arrive before the backward pass of this call has `begun` are another loss's.
    """

    scale: float
    candidates: dict[str, Gradients] = field(default_factory=dict[str, Gradients])
    own: Gradients = field(default_factory=Gradients)
    size: float = 0.0
    arrived: dict[str, dict[str, Reduced]] = field(default_factory=dict[str, dict[str, Reduced]])
    moved: float = 0.0
    norm: float = 0.0
    begun: bool = False


class _Call:
    """A call whose backward pass is still to come; gone once nothing can call it any more."""


class Shadow:
    """The direct errors of some candidates along the training of `model`; see `shadow`.

    `errors` holds what was seen of each so far, on this process. With `keep`, `kept_gradients` has
    the gradients of the last call's sample, if it was one.
    """

    def __init__(
        self,
        model: nn.Module,
        candidates: Mapping[str, Variant],
        *,
        baseline: Variant = AS_IT_IS,
        every: int = 1,
        seed: int = 0,
        keep: bool = False,
    ) -> None:
        if every < 1:
            raise UsageError(f"every is {every}; expected a number of calls, at least 1")
        self.model, self._inner = model, undistributed(model)
        self.baseline, self.candidates = baseline, dict(candidates)
        self.every, self.seed, self.keep = every, seed, keep
        self.kept_gradients: dict[str, Kept] = {}
        self.errors = {name: DirectError() for name in candidates}
        self.calls, self.kept = 0, KEPT
        self._awaited: weakref.ref[_Call] | None = None
        self._apart = math.nan
        self._scale: float | Tensor = 1.0
        self._pending: _Pending | None = None
        self._own = self._inside = False
        self._open = contextlib.ExitStack()
        plain = [name for name, way in self.candidates.items() if not way.over]
        if baseline is not AS_IT_IS and plain:
            raise UsageError(
                f"candidate {plain[0]!r} beside baseline {baseline.name!r}; expected an attention, "
                "or the baseline None: the model that you train, with the baseline applied to it"
            )

    def __enter__(self) -> Shadow:
        """Listen to the gradients. The baseline's variant is in force until the end."""
        if self._inside:
            raise UsageError("this shadow is open already; make another with shadow(...)")
        with contextlib.ExitStack() as opening:
            if opening.enter_context(self.baseline.entered(self._inner)) is not self._inner:
                raise UsageError(
                    f"baseline {self.baseline.name!r} makes another model; expected None, and "
                    "the patch applied to the model that you train"
                )
            self._weights = parameters(self._inner)
            for name, weight in self._weights.items():
                opening.callback(_listen(weight, partial(self._arrive, name)))
            self._open = opening.pop_all()
        self._inside = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        """Take in the last sample, and be gone."""
        self._inside = False
        if kind is None:
            self.settle()
        self._pending = None
        return self._open.__exit__(kind, error, trace)

    def __call__(self, loss_of: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
        """`loss_of(model, *args, **options)`, the scalar loss of the next backward pass.

        Every `every`-th call is sampled. `loss_of` must compute all of the loss from the model
        that it is given, and may be called up to three times for one batch. Under
        `torch.no_grad()` nothing is sampled or counted. `UsageError` outside the `with` block,
        and for a loss that is no scalar. What `loss_of` raises comes through as it is; a candidate
        that fails where the baseline does not is a `CandidateError`, before anything of the
        training was done: catch it and take `loss_of(model, ...)`, or let it end the run.
        """
        if not self._inside:
            raise UsageError("this shadow is not open; call it inside `with shadow(...) as name:`")
        if not torch.is_grad_enabled():
            return loss_of(self.model, *args, **options)
        self.settle()
        self.kept_gradients.clear()
        if self.calls % self.every == 0:
            self._sample(lambda model: loss_of(model, *args, **options))
        self.calls += 1
        loss = scalar(loss_of(self.model, *args, **options))
        if loss.requires_grad:
            call = _Call()
            self._awaited = weakref.ref(call)
            _listen(loss, partial(self._scaled, call, self._pending))
        return loss

    def judge(self, candidate: str | None = None, *, alpha: float = ALPHA) -> Judgement:
        """Noise or bias of a candidate (None: the only one), over all processes of the run.

        Under `torch.distributed` every process must call it, and gets the same answer.
        `UsageError` before the first sample, and where `loss_of` did not give all of the loss.
        """
        self.settle()
        name = next(iter(self.errors)) if candidate is None else candidate
        if name not in self.errors:
            raise UnknownNameError("candidate", name, self.errors)
        if self._apart > APART:
            raise UsageError(
                f"the baseline's own gradient differs by {self._apart:.0%} from what `loss_of` "
                "gives; it must compute all of the loss, and draw from global random states only"
            )
        return judge(of_all_processes(self.errors[name], self.model), alpha=alpha)

    def counters(self) -> dict[str, float]:
        """What it knows besides `errors`, once settled; `resume` takes it."""
        return {"calls": self.calls, "kept": self.kept, "scale": float(self._scale)}

    def resume(self, counters: Mapping[str, float], errors: Mapping[str, DirectError]) -> None:
        """Go on where another shadow of the same run was."""
        self.calls, self.kept = int(counters["calls"]), int(counters["kept"])
        self._scale = counters["scale"]
        self.errors = dict(errors)

    def _sample(self, loss_of: LossOf) -> None:
        if self._awaited is not None and self._awaited() is not None:
            self._give_up()  # two losses may go into one backward pass: not to be told apart
            return
        self._scale = float(self._scale)
        number = self.calls // self.every
        self._pending = _Pending(self._scale)
        if number % REDRAWN == REDRAWN - 1:
            weights = self._weights.values()
            with redrawn(weights, kept=self.kept, seed=self.seed + number):
                self._sample_redrawn(self._pending, loss_of)
            return
        for name in self.candidates:
            self._pending.candidates[name] = self._candidate_s(name, loss_of)
            self._keep(name, self._pending.candidates[name], None)
        if math.isnan(self._apart):
            self._pending.own = self._gradients(AS_IT_IS, loss_of)

    def _sample_redrawn(self, pending: _Pending, loss_of: LossOf) -> None:
        pending.own = self._gradients(AS_IT_IS, loss_of)
        for name in self.candidates:
            c, scale = self._candidate_s(name, loss_of), pending.scale
            self._keep(name, c, pending.own)
            sample = {
                n: _reduced(c.get(n), pending.own.get(n), w, scale, sketch=False)
                for n, w in self._weights.items()
            }
            self.errors[name].redrawn.add(sample)
            pending.size = max(pending.size, sum(float(r.dots[0]) for r in sample.values()))

    def _keep(self, name: str, c: Gradients, there: Gradients | None) -> None:
        if self.keep:
            self.kept_gradients[name] = self._unscaled(c), there and self._unscaled(there)

    def _unscaled(self, gradients: Gradients) -> Gradients:
        return {name: g / float(self._scale) for name, g in gradients.items()}

    def _candidate_s(self, name: str, loss_of: LossOf) -> Gradients:
        try:
            return self._gradients(self.candidates[name], loss_of)
        except Exception as error:
            failure = error
        traceback.clear_frames(failure.__traceback__)  # they hold the memory of its pass
        self._gradients(AS_IT_IS, loss_of)  # raises too where the error is the training's own
        self._give_up()
        self.calls += 1
        raise CandidateError(
            f"candidate {name!r} failed at call {self.calls}: {told(failure)}; the training is "
            f"as it was, and the sample was given up"
        ) from failure

    def _gradients(self, way: Variant, loss_of: LossOf) -> Gradients:
        """The gradients of the scaled loss under `way`, with nothing of the training touched."""
        self._own = True
        try:
            with undisturbed(self._inner), way.entered(self._inner) as model:
                weights = parameters(model)
                loss = scalar(loss_of(model))
                upstream = torch.full_like(loss, float(self._scale))
                autograd: Any = torch.autograd
                found = autograd.grad(loss, [*weights.values()], upstream, allow_unused=True)
        except RuntimeError as error:
            if "use_reentrant" not in str(error):
                raise
            raise UnsupportedError(
                "reentrant checkpointing hides the weights from autograd; shadow expects "
                "torch.utils.checkpoint with use_reentrant=False"
            ) from error
        finally:
            self._own = False
        pairs = zip(weights, found, strict=True)
        return {name: g.detach() for name, g in pairs if g is not None}

    def _scaled(self, call: _Call, sampled: _Pending | None, upstream: Tensor) -> None:
        """The loop's backward pass of one call begins, from `upstream` times its loss."""
        if self._own:
            return
        self._scale = upstream.detach()
        if self._awaited is not None and self._awaited() is call:
            self._awaited = None
        if (pending := self._pending) is None:
            return
        if pending is not sampled or pending.begun or float(self._scale) != pending.scale:
            self._give_up()
            return
        pending.begun = True
        # Once this pass has ended the sample is whole; what arrives later is another's.
        cast(Any, torch.autograd.Variable)._execution_engine.queue_callback(self.settle)

    def _arrive(self, name: str, gradient: Tensor) -> None:
        """The baseline's gradient of one tensor, before it is added to `.grad`."""
        pending = self._pending
        if self._own or pending is None or not pending.begun:
            return
        if name in pending.arrived:  # in parts, by reentrant checkpointing: not to be told apart
            self._give_up()
            return
        weight, scale = self._weights[name], pending.scale
        if name in pending.own:
            moved = _reduced(pending.own.pop(name), gradient, weight, scale, sketch=False)
            pending.moved += float(moved.dots[0])
            pending.norm += float(moved.dots[2])
        pending.arrived[name] = {
            candidate: _reduced(gradients.pop(name, None), gradient, weight, scale)
            for candidate, gradients in pending.candidates.items()
        }

    def settle(self) -> None:
        """Take in the sample whose backward pass has ended; the next call does so by itself."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        if not pending.arrived:
            self._pending = pending
            self._give_up()
            return
        if not pending.candidates:
            if pending.moved < FAR**2 * pending.size:
                self.kept = max(FEWEST, self.kept - 1)
            return
        if math.isnan(self._apart) and pending.norm > 0:
            self._apart = math.sqrt(pending.moved / pending.norm)
        for candidate, rest in pending.candidates.items():
            sample = {
                name: pending.arrived[name][candidate]
                if name in pending.arrived
                else _reduced(rest.get(name), None, weight, pending.scale)
                for name, weight in self._weights.items()
            }
            self.errors[candidate].plain.add(sample)

    def _give_up(self) -> None:
        if self._pending is not None:
            self._pending.candidates.clear()
            self._pending.own.clear()
            self._pending = None
        for error in self.errors.values():
            error.given_up += 1


def shadow(model: nn.Module, baseline: Way, candidate: Way, *, every: int = 1) -> Shadow:
    """Whether a candidate's error is noise or bias, along your own training of `model`.

    A context manager: inside, `shadow(loss_of, batch)` stands for `loss_of(model, batch)`. Every
    `every`-th call is sampled: the candidate's gradient is taken beside the baseline's, at the
    same weights, batch and random state. That costs one more forward and backward pass, at
    every fifth sample two, and one more copy of the gradients. The training is not touched:
    weights, losses and random states are bit for bit what they were without. 150 samples
    tell a bias such as a truncated output; `judge()` says how small a gain could have been seen.

    `baseline` and `candidate` are an attention by name or as a function, a patch (a function that
    changes a model, or returns another with the same weights, such as torch.compile), a `Variant`,
    or None: the model as it is. The baseline is what trains. Autocast, `GradScaler` (its
    scale is learned from the backward pass), accumulated gradients and
    DistributedDataParallel are understood; sharded models are an `UnsupportedError`.

    >>> from torch import nn
    >>> from torch.nn.functional import mse_loss
    >>> draw, x = torch.manual_seed(0), torch.randn(8, 4)
    >>> model = nn.Linear(4, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    >>> def shorter(model):
    ...     model.register_forward_hook(lambda module, args, out: 0.999 * out)
    >>> with shadow(model, None, shorter) as shadowed:
    ...     for step in range(40):
    ...         loss = shadowed(lambda model, x: mse_loss(model(x), x[:, :1]), x)
    ...         loss.backward()
    ...         optimizer.step()
    ...         optimizer.zero_grad()
    >>> shadowed.judge().samples, shadowed.judge().redrawn
    (32, 8)
    """
    way = variant(candidate)
    return Shadow(model, {way.name: way}, baseline=variant(baseline), every=every)


def _listen(tensor: Any, hook: Callable[[Tensor], None]) -> Callable[[], None]:
    """Call `hook` with the tensor's gradient; returns what ends it."""
    return tensor.register_hook(hook).remove


def _reduced(
    c: Tensor | None, g: Tensor | None, like: Tensor, scale: float, *, sketch: bool = True
) -> Reduced:
    """x = c - g and g of the loss itself; a gradient that there is not is 0."""
    zero = torch.zeros((), device=like.device).expand(like.shape)
    c, g = (zero if t is None else _wide(t.detach()) for t in (c, g))
    return reduced((c - g) / scale, g / scale, sketch=sketch)


def _wide(t: Tensor) -> Tensor:
    """In float32 at least: float64 gradients may differ by less than float32 can tell."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


def scalar(loss: Any) -> Tensor:
    """The loss itself; `UsageError` unless it is a tensor with one element."""
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss
    what = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
    raise UsageError(f"the loss is {what}; expected a tensor with one element")
