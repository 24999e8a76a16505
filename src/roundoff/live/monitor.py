"""Monitor: watches a training while it runs, and changes nothing.

The clock is the optimizer's own step. Between sampled steps only its post-step hook is there.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from roundoff.errors import UnsupportedError, in_one_line
from roundoff.live.compiled import compiled_names
from roundoff.live.findings import Findings
from roundoff.live.ranks import Ranks
from roundoff.live.setup import INSIDE, check, root_of, sources_of, watches_of
from roundoff.live.sinks import Sink, sink_at
from roundoff.live.sources import Seen, Source
from roundoff.live.watch import Watch
from roundoff.records import Finding, Reading
from roundoff.state.processes import is_first
from roundoff.state.random_states import undrawn

__all__ = ["Monitor"]

_LOG = logging.getLogger("roundoff")


class Monitor:
    """Watches the training of `model` by `optimizer`; weights and losses stay bit for bit the same.

    `watch` says what and when: `Watch` values or the path of a TOML file; None: the `DEFAULT`, at
    every `every`-th step. `to` is where readings go: sinks, or the path of a run directory. A step
    is one of the optimizer, numbered from `first_step` on. Use it as a context manager, or call
    `close()`; then all of it is gone.

    `readings` are those of the last sampled step, `findings` all that stood out: the first module
    that made a NaN or infinity, heads of attention beyond what their recipe predicts. They are
    logged too, by Python's logger "roundoff".

    Errors, before anything is changed: `UsageError` for a pattern that fits nothing,
    `UnknownNameError` for a probe or format, `UnsupportedError` for what cannot be watched without
    disturbing it: modules inside a torch.compile graph, FSDP's flat parameters; `RunError` for a
    path that cannot be written, `MissingLibraryError` for a sink whose library is not here.
    Later, whatever fails is switched off with one warning, and the training goes on.

    >>> model = nn.Linear(4, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with Monitor(model, optimizer, watch=[Watch(of="gradients", every=1)]) as monitor:
    ...     model(torch.ones(2, 4)).sum().backward()
    ...     optimizer.step()
    >>> [(r.step, r.name, r.values["amax"]) for r in monitor.readings]
    [(0, 'weight', 2.0), (0, 'bias', 2.0), (0, '*', 2.0)]
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        watch: Sequence[Watch] | str | Path | None = None,
        every: int | None = None,
        to: Iterable[Sink] | str | Path = (),
        first_step: int = 0,
    ) -> None:
        check(model, optimizer)
        self.step, self.skipped = first_step, 0
        self.readings: list[Reading] = []
        self._root, watches = root_of(model), watches_of(watch, every)
        hidden = compiled_names(self._root, model)
        self._sources = sources_of(self._root, optimizer, watches, hidden, given=watch is not None)
        for source in self._sources:
            source.safely = partial(self._safely, source)
        self._watches = watches
        self._limits = Findings(watches)
        self._ranks = Ranks()
        writes = is_first()
        self._sinks = ([sink_at(to)] if writes else []) if isinstance(to, str | Path) else [*to]
        self._awake: list[Source] = []
        self._optimizer = optimizer
        self._passing: list[Any] = []
        self._forwards, self._backward, self._led, self._open = 0, False, False, True
        weights: list[Any] = [p for group in optimizer.param_groups for p in group["params"]]
        self._weights = [weight for weight in weights if weight.requires_grad]
        self._hook: Any = optimizer.register_step_post_hook(self._stepped)
        self._begin()

    @property
    def findings(self) -> list[Finding]:
        """All that stood out so far."""
        return self._limits.found

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take everything out of model and optimizer, and close the sinks; twice does no harm."""
        self._open = False
        self._hook.remove()
        self._drop(self._sources)
        for sink in self._sinks:
            with self._safely(sink):
                sink.close()
        self._sinks = []

    # -- the clock

    def at(self, step: int) -> None:
        """The step that comes is `step`: said by a trainer that counts what a scaler skips too.

        It may call parts of the model only, as Lightning does, and knows what is compiled.
        """
        self._led = True
        if step == self.step or not self._open:
            return
        self.skipped += bool(self._awake)
        self._drop(self._awake)
        self.step = step
        self._begin()

    def _samples(self) -> bool:
        return any(watch.samples(self.step) for watch in self._watches)

    def _begin(self) -> None:
        """If the step that comes is sampled, wake the sources that sample it."""
        self._awake = [s for s in self._sources if s.watch.samples(self.step)]
        self._forwards, self._backward = 0, False
        if self._awake:
            hook = self._optimizer.register_step_pre_hook(self._before_update)
            self._passing.append(hook)
        if self._looks_inside():
            self._passing.append(self._root.register_forward_pre_hook(self._forward_begins))
            self._passing += [w.register_hook(self._backward_begun) for w in self._weights]
        for source in [*self._awake]:
            with self._safely(source):
                source.begin(self.step)

    def _looks_inside(self) -> bool:
        return any(source.watch.of in INSIDE for source in self._awake)

    def _forward_begins(self, *_: Any) -> None:
        """Forget a step that was not to be: its gradients have been dropped without an update."""
        if torch.compiler.is_compiling() or not self._root.training:
            return
        self._forwards += 1
        if self._backward and all(p.grad is None for p in self._weights):
            self.skipped += 1
            self._forwards, self._backward = 1, False
            for source in [*self._awake]:
                with self._safely(source):
                    source.drop()
                    source.begin(self.step)

    def _backward_begun(self, _: Any) -> None:
        self._backward = True

    def _before_update(self, *_: Any) -> None:
        for source in [*self._awake]:
            with self._safely(source):
                source.before_update()

    def _stepped(self, *_: Any) -> None:
        """The optimizer has stepped: take in what was seen, and see what comes."""
        if self._samples():
            self._take()
        self.step += 1
        if self._samples():
            self._begin()

    def _take(self) -> None:
        """Take in a sampled step; every process of a training comes by, whatever failed in it."""
        seen = Seen()
        unseen = self._looks_inside() and not self._forwards and not self._led
        found: Any = getattr(self._optimizer, "found_inf", None)  # of a scaler and fused weights
        if found is not None and float(found):
            self.skipped += 1
            self._drop(self._awake)
        self._unhook()
        with undrawn():
            for source in [*self._awake]:
                with self._safely(source):
                    self._end(source, seen, unseen=unseen)
            self._awake = []
            with self._safely(self._ranks):
                self._read(seen)

    def _end(self, source: Source, seen: Seen, *, unseen: bool) -> None:
        if unseen and source.watch.of in INSIDE:
            raise UnsupportedError(
                "the model was never called as a module: it runs inside a torch.compile graph, "
                "where watching would make another graph; give the monitor the compiled model"
            )
        source.end(seen)

    def _read(self, seen: Seen) -> None:
        """One transfer, one meeting of the ranks; then it is numbers."""
        merged = self._ranks.merged(seen)
        if merged is None or not merged.states:
            return
        self.readings = _readings(self.step, merged)
        found = self._limits.look(self.step, self.readings)
        for finding in found:
            _LOG.warning("%s", finding)
        for sink in [*self._sinks]:
            with self._safely(sink):
                sink.write(self.step, self.readings, found)

    def _drop(self, sources: Sequence[Source]) -> None:
        self._unhook()
        for source in [*sources]:
            with self._safely(source):
                source.drop()
        self._awake = []

    def _unhook(self) -> None:
        for hook in self._passing:
            hook.remove()
        self._passing = []

    @contextlib.contextmanager
    def _safely(self, part: Source | Sink | Ranks) -> Generator[None]:
        """What fails inside is switched off, with one warning, and the training goes on."""
        try:
            yield
        except Exception as error:
            self._switch_off(part)
            what = type(part).__name__ if isinstance(part, Ranks | Sink) else part.watch.of
            _LOG.warning(
                "monitor: %s failed and is switched off; the training goes on (%s)",
                what, in_one_line(error),
            )  # fmt: skip

    def _switch_off(self, part: Any) -> None:
        lists: tuple[list[Any], ...] = (self._sources, self._awake, self._sinks)
        for parts in lists:
            if part in parts:
                parts.remove(part)
        with contextlib.suppress(Exception):
            (part.drop if hasattr(part, "drop") else part.close)()


def _readings(step: int, merged: Seen) -> list[Reading]:
    """States as numbers: one reading for each thing, and each head of it."""
    values: dict[tuple[str, str, int | None], dict[str, float]] = {}
    for key, state in merged.states.items():
        for name, tensor in merged.probes[key.of, key.probe].values(state).items():
            numbers: Any = tensor
            heads: Any = enumerate(numbers.tolist()) if tensor.ndim else [(None, numbers.item())]
            for head, value in heads:
                values.setdefault((key.of, key.name, head), {})[name] = float(value)
    return [Reading(step, of, name, found, head) for (of, name, head), found in values.items()]
