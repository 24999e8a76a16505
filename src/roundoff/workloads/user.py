"""The user's workload: a `module:function` that returns (model, optimizer, batches, loss)."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from roundoff.errors import RoundoffError, UnsupportedError, UsageError, in_one_line
from roundoff.kernels import settings
from roundoff.kernels.loading import Loaded, load
from roundoff.state.random_states import RandomStates, seeded
from roundoff.workloads.protocol import WORKLOADS, Task, Workload

__all__ = ["load_workload"]

SEEDS = ("init_seed", "data_seed")


def load_workload(name: str) -> Workload:
    """The workload of a name of `WORKLOADS`, or of `module:function` or `file.py:function`.

    The function returns a `Task`, or (model, optimizer, batches, loss): `loss(model, batch)` is a
    scalar tensor, and `batches` an iterable, or a function of the step. It is called with
    torch's, numpy's and Python's random numbers seeded by the run's initial seed, and gets
    `init_seed` and `data_seed` where it has parameters of these names. Settings of torch that its
    module makes are in force from then on. A function of the step finds random numbers that
    follow from the data seed and the step. An iterable is wound forward, with random numbers
    of its own that start from the data seed, and begun again at its end.

    Errors: `UsageError` for what cannot be imported or returns something else; `UnsupportedError`
    for a workload that cannot run here.

    >>> load_workload("txt")
    Traceback (most recent call last):
    ...
    roundoff.errors.UnknownNameError: unknown workload 'txt'; did you mean 'text'?
    """
    if ":" in name:
        loaded = load(name)
        doc = inspect.getdoc(loaded.function) or "a workload of yours"
        return Workload(name, doc, lambda init, data: _task(name, loaded, init, data), _nothing)
    if name.endswith(".py"):
        raise UsageError(f"workload {name!r} names no function; expected {name}:function")
    workload = WORKLOADS[name]
    if missing := workload.missing():
        raise UnsupportedError(f"workload {name!r} cannot run here; it needs {missing}")
    return workload


def _nothing() -> None:
    return None


def _made(place: str, loaded: Loaded, init_seed: int, data_seed: int) -> Any:
    """What the function returns; settings that its module made are in force from now on."""
    known = inspect.signature(loaded.function).parameters
    given = dict(zip(SEEDS, (init_seed, data_seed), strict=True))
    settings.put(loaded.settings)
    try:
        with seeded(init_seed), contextlib.redirect_stdout(sys.stderr):
            return loaded.function(**{n: v for n, v in given.items() if n in known})
    except RoundoffError:
        raise
    except Exception as error:
        raise UsageError(f"{place} raised {in_one_line(error)}") from error


def _task(place: str, loaded: Loaded, init_seed: int, data_seed: int) -> Task:
    made = _made(place, loaded, init_seed, data_seed)
    if isinstance(made, Task):
        return made
    parts = cast("tuple[Any, ...]", made) if isinstance(made, tuple) else (made,)
    if len(parts) != 4:
        got = [type(part).__name__ for part in parts]
        raise UsageError(
            f"{place} returned {', '.join(got) or 'nothing'}; "
            "expected (model, optimizer, batches, loss) or a roundoff Task"
        )
    model, optimizer, batches = parts[:3]
    loss: Any = parts[3]
    _check(place, "a model", model, nn.Module)
    _check(place, "an optimizer", optimizer, Optimizer)
    if not callable(loss):
        raise UsageError(f"{place} returned a loss of type {type(loss).__name__}; "
                         "expected a function of (model, batch)")  # fmt: skip
    batch = _batch_of(place, batches, data_seed)
    return Task(model, optimizer, batch, cast("Callable[..., Tensor]", loss))


def _check(place: str, what: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind):
        raise UsageError(
            f"{place} returned {what} of type {type(value).__name__}; "
            f"expected a {kind.__module__.partition('.')[0]} {kind.__name__}"
        )


def _batch_of(place: str, batches: Any, data_seed: int) -> Callable[[int], Any]:
    if isinstance(batches, Iterable):
        return _Wound(place, cast("Iterable[Any]", batches), data_seed)
    if callable(batches):
        return lambda step: _drawn(batches, step, data_seed)
    raise UsageError(
        f"{place} returned batches of type {type(batches).__name__}; "
        "expected an iterable, or a function of the step"
    )


def _drawn(batches: Callable[..., Any], step: int, seed: int) -> Any:
    with seeded(seed * 1_000_003 + step):
        return batches(step)


class _Wound:
    """The batches of an iterable by step: wound forward, and from the start for an earlier one.

    The random state that shuffling draws from is kept from one batch to the next, apart from
    everybody else's.
    """

    def __init__(self, place: str, batches: Iterable[Any], seed: int) -> None:
        self.place, self.batches, self.seed = place, batches, seed
        self.items: Iterator[Any] | None = None
        self.at = -1
        self.item: Any = None
        self.random = RandomStates.here()

    def __call__(self, step: int) -> Any:
        with seeded(self.seed):
            if step < self.at or self.items is None:
                self._start_over()
            else:
                self.random.put_back()
            while self.at < step:
                self.item = self._next()
                self.at += 1
            self.random = RandomStates.here()
        return self.item

    def _start_over(self) -> None:
        if isinstance(self.batches, Iterator) and self.items is not None:
            raise UsageError(
                f"{self.place}: its batches are an iterator, which cannot go back to step 0; "
                "return an iterable that can be begun again, or a function of the step"
            )
        self.items, self.at = iter(self.batches), -1

    def _next(self) -> Any:
        assert self.items is not None
        for item in self.items:
            return item
        self.items = iter(self.batches)
        for item in self.items:
            return item
        raise UsageError(f"{self.place}: its batches ended before step {self.at + 1}")
