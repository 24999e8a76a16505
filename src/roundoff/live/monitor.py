"""Monitor: watches a training while it runs, and changes nothing.

The clock is the optimizer's own step. Between sampled steps only its post-step hook is there.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from roundoff.errors import UnsupportedError, in_one_line
from roundoff.intercept.hooks import Hook
from roundoff.live.compiled import has_compiled
from roundoff.live.findings import Findings
from roundoff.live.ranks import Ranks, States, fetched, readings_of
from roundoff.live.setup import (
    INSIDE,
    To,
    check,
    first_of,
    root_of,
    sinks_of,
    sources_of,
    watches_of,
)  # fmt: skip
from roundoff.live.sinks import Sink
from roundoff.live.sources import Seen, Source
from roundoff.live.watch import Of, Watch
from roundoff.records import Finding, Reading
from roundoff.state.random_states import undrawn

__all__ = ["Monitor"]

_LOG = logging.getLogger("roundoff")


class Monitor:
    """Watches the training of `model` by `optimizer`; weights and losses stay bit for bit the same.

    `watch` says what and when: `Watch` values, kinds such as "gradients", or the path of a TOML
    file; None: the `DEFAULT`. `every` is that of kinds and of the default. `to` is where readings
    go: sinks, paths of a run directory or of a `.jsonl` file. A step is one of the optimizer,
    numbered from `first_step` on. Use it as a context manager, or call `close()`; then all of it is
    gone.

    `step` is the step that comes, `skipped` how many sampled ones came to nothing. `readings` are
    those of the last sampled step, `findings` all that stood out: the first module that made a NaN
    or infinity, heads of attention beyond what their recipe predicts. They are logged too, by
    Python's logger "roundoff". What is seen by hooks (activations, attention) is seen where the
    training calls `model(...)`; a copy of the model that is made meanwhile is not watched.

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
        watch: Watch | Sequence[Watch | Of] | str | Path | None = None,
        every: int | None = None,
        to: To = None,
        first_step: int = 0,
    ) -> None:
        check(model, optimizer)
        self.step, self.skipped = first_of(first_step), 0
        self.readings: list[Reading] = []
        self._root, self._optimizer = root_of(model), optimizer
        self._watches = watches_of(watch, every)
        self._sources = sources_of(model, optimizer, self._watches, given=watch is not None)
        for source in self._sources:
            source.safely = partial(self._safely, source)
        self._limits, self._said = Findings(self._watches), set[str]()
        with undrawn():
            self._sinks = sinks_of(to)
            self._ranks = Ranks()
        self._awake: list[Source] = []
        self._passing: list[Any] = []
        self._weights: list[Any] = []
        self._forwards, self._idle, self._backward = 0, 0, False
        self._listening, self._led, self._open = False, False, True
        self._hook: Any = optimizer.register_step_post_hook(self._stepped)
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

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
        with undrawn():
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
        """Wake the sources that sample the step that comes."""
        self._awake = [s for s in self._sources if s.watch.samples(self.step)]
        self._forwards, self._idle, self._backward = 0, 0, False
        if self._awake:
            hook = self._optimizer.register_step_pre_hook(self._before_update)
            self._passing.append(hook)
        for source in [*self._awake]:
            with self._safely(source):
                if source.watch.of in INSIDE:
                    self._listen()
                source.begin(self.step)

    def _listen(self) -> None:
        """Hear when in this step the model is called, and a backward pass begins."""
        if self._listening:
            return
        hook = Hook(self._forward_begins)
        self._passing.append(self._root.register_forward_pre_hook(hook))
        every: list[Any] = [p for g in self._optimizer.param_groups for p in g["params"]]
        self._weights = [weight for weight in every if weight.requires_grad]
        for weight in self._weights:
            self._passing.append(weight.register_hook(self._backward_begun))
        self._listening = True

    def _forward_begins(self, *_: Any) -> None:
        """Forget a step that was not to be: its gradients have been dropped without an update."""
        if torch.compiler.is_compiling():
            return
        if not self._root.training:
            self._idle += 1
            return
        self._forwards += 1
        with self._safely(*self._awake):
            if self._backward and all(p.grad is None for p in self._weights):
                self._begin_anew()

    def _begin_anew(self) -> None:
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
            with undrawn():
                self._take()
        self.step += 1
        if self._samples():
            with self._safely(*self._sources):
                self._begin()

    def _take(self) -> None:
        """Take in a sampled step; every process of a training comes by, whatever failed in it."""
        seen: list[tuple[Source, Seen]] = []
        with self._safely(*self._awake):
            self._end(seen)
        self._awake = []
        with self._safely(self._ranks):
            self._read(seen)

    def _end(self, seen: list[tuple[Source, Seen]]) -> None:
        """Hear from each source what it saw."""
        found: Any = getattr(self._optimizer, "found_inf", None)  # of a scaler and fused weights
        if found is not None and float(found):
            self.skipped += 1
            self._drop(self._awake)
        unseen = self._listening and not self._forwards and not self._led
        self._unhook()
        for source in [*self._awake]:
            with self._safely(source):
                if unseen and source.watch.of in INSIDE:
                    source.drop()
                    self._unseen()
                else:
                    part = Seen()
                    source.end(part)
                    seen.append((source, part))

    def _unseen(self) -> None:
        """The model was not called as it trains: say why, as far as that can be told."""
        if self._idle:
            why = "the model was called in eval mode only"
        elif has_compiled():
            raise UnsupportedError(
                "the model was never called as a module: it runs inside a torch.compile graph, "
                "where watching would make another graph; give the monitor the compiled model, or "
                "watch gradients, parameters, updates or moments"
            )
        else:
            why = "the model was never called in it: expected model(...), not another method"
        self._say(f"activations and attention were not seen in step {self.step}; {why}", once=why)

    def _read(self, seen: Sequence[tuple[Source, Seen]]) -> None:
        """One transfer, one meeting of the ranks; then it is numbers."""
        every = self._ranks.gathered(self._fetched(seen))
        if not every or not any(every):
            return
        probes = {key: probe for _, part in seen for key, probe in part.probes.items()}
        self.readings = []
        for of in dict.fromkeys(key.of for states in every for key in states):
            with self._safely(*(s for s in self._sources if s.watch.of == of)):
                self.readings += readings_of(of, self.step, every, probes)
        found: list[Finding] = []
        with self._safely(self._limits):
            found = self._limits.look(self.step, self.readings)
        for finding in found:
            _LOG.warning("%s", finding)
        for sink in [*self._sinks]:
            with self._safely(sink):
                sink.write(self.step, self.readings, found)

    def _fetched(self, seen: Sequence[tuple[Source, Seen]]) -> States:
        """All states on the CPU; where that fails, those of each source that does not."""
        together: States = {}
        for key, state in (pair for _, part in seen for pair in part.states.items()):
            together.setdefault(key, state)
        try:
            return fetched(together)
        except Exception:
            alone: States = {}
            for source, part in seen:
                with self._safely(source):
                    alone |= fetched(part.states)
            return alone

    def _drop(self, sources: Sequence[Source]) -> None:
        self._unhook()
        for source in [*sources]:
            with self._safely(source):
                source.drop()
        self._awake = []

    def _unhook(self) -> None:
        for hook in self._passing:
            hook.remove()
        self._passing, self._listening = [], False

    @contextlib.contextmanager
    def _safely(self, *parts: Source | Sink | Ranks | Findings) -> Generator[None]:
        """What fails inside is switched off, with one warning, and the training goes on."""
        try:
            yield
        except Exception as error:
            names: dict[str, None] = {}
            for part in parts:
                self._switch_off(part)
                names[_name(part)] = None
            what = ", ".join(names) or "readings"
            self._say(
                f"{what}: switched off after an error, and the training goes on "
                f"({in_one_line(error)})",
                once=what,
            )

    def _switch_off(self, part: Any) -> None:
        lists: tuple[list[Any], ...] = (self._sources, self._awake, self._sinks)
        for parts in lists:
            if part in parts:
                parts.remove(part)
        with contextlib.suppress(Exception):
            (part.drop if hasattr(part, "drop") else part.close)()

    def _say(self, text: str, *, once: str) -> None:
        if once not in self._said:
            self._said.add(once)
            _LOG.warning("monitor: %s", text)


def _name(part: Any) -> str:
    """What a part is called: a source by what it watches, anything else by its type."""
    watch = getattr(part, "watch", None)
    return type(part).__name__ if watch is None else watch.called
