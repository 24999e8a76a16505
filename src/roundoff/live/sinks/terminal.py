"""The last readings as a table that stays in place; where there is no terminal, one a step."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import IO

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from roundoff.records import Finding, Reading

__all__ = ["Terminal"]

WIDTH = 100
SHOWN = ("rmse", "gain", "entropy", "logit_max")
"""What is shown of a head beside its largest ratio, if it was measured."""


class Terminal:
    """What was seen last: tensors by kind, the `heads` worst by ratio, what stood out so far.

    A NaN is worst of all. `file` is standard error, where progress goes, unless it is given.
    """

    def __init__(self, *, heads: int = 5, file: IO[str] | None = None) -> None:
        self._heads, self._file = heads, file
        self._live: Live | None = None
        self._findings: list[Finding] = []

    def write(self, step: int, readings: Sequence[Reading], findings: Sequence[Finding]) -> None:
        """Show those of `step`."""
        self._findings += findings
        seen = _shown(step, readings, self._findings, self._heads)
        if self._live is None:
            self._live = _live(self._file or sys.stderr)
        if not self._live.console.is_terminal:
            self._live.console.print(seen)
            return
        self._live.start()
        self._live.update(seen, refresh=True)

    def close(self) -> None:
        """Leave the last table where it is."""
        live, self._live = self._live, None
        if live is not None and live.console.is_terminal:
            live.stop()


def _live(file: IO[str]) -> Live:
    """Without a thread of its own; what others print to the terminal appears above it."""
    console = Console(file=file, highlight=False)
    console.width = min(WIDTH, console.width) if console.is_terminal else WIDTH
    return Live(
        console=console,
        auto_refresh=False,
        redirect_stdout=sys.stdout.isatty(),
        redirect_stderr=sys.stderr.isatty(),
    )


def _shown(
    step: int, readings: Sequence[Reading], findings: Sequence[Finding], heads: int
) -> RenderableType:
    parts: list[RenderableType] = [Text(f"step {step}", style="bold")]
    if kinds := [r for r in readings if r.head is None]:
        parts.append(_kinds(kinds))
    if worst := sorted((r for r in readings if r.head is not None), key=_worst)[:heads]:
        parts.append(_of_heads(worst))
    more = f"{len(findings)} findings" if len(findings) != 1 else "1 finding"
    parts.append(Text(more if findings else "nothing stood out"))
    parts += [Text(str(finding), style="red") for finding in findings[-3:]]
    return Group(*parts)


def _kinds(readings: Sequence[Reading]) -> Table:
    """A row a kind of tensors: of all together where that was read, else the largest of each."""
    table = _table(["tensors", "of", "measured"])
    for of in dict.fromkeys(r.of for r in readings):
        mine = [r for r in readings if r.of == of]
        pooled = [r for r in mine if set(r.name) & set("*?[")]
        for reading in pooled or [_largest(mine)]:
            texts = [f"{name} {_text(value)}" for name, value in reading.values.items()]
            table.add_row(Text(of), Text(reading.name), Text("  ".join(texts)))
    return table


def _largest(readings: Sequence[Reading]) -> Reading:
    """The largest of each measure; a NaN is larger than any."""
    names = dict.fromkeys(name for r in readings for name in r.values)
    values = {n: _maximum(r.values[n] for r in readings if n in r.values) for n in names}
    first = readings[0]
    where = first.name if len(readings) == 1 else f"largest of {len(readings)}"
    return Reading(first.step, first.of, where, values)


def _maximum(values: Iterable[float]) -> float:
    return max(values, key=lambda value: (math.isnan(value), value))


def _of_heads(readings: Sequence[Reading]) -> Table:
    shown = [name for name in SHOWN if any(name in r.values for r in readings)]
    table = _table(["worst heads"], numbers=["ratio", "of", *shown])
    for reading in readings:
        of, ratio = _ratio(reading)
        numbers = (_text(reading.values[n]) if n in reading.values else "" for n in shown)
        table.add_row(Text(reading.place), _text(ratio) if of else "", of, *numbers)
    return table


def _worst(reading: Reading) -> tuple[bool, float]:
    """Sorts heads whose error is NaN first, then by the largest ratio."""
    return not math.isnan(reading.values.get("rmse", 0.0)), -_ratio(reading)[1]


def _ratio(reading: Reading) -> tuple[str, float]:
    """The output with the largest ratio to what its recipe predicts; one that is NaN is none."""
    found = {
        name.removesuffix("ratio").rstrip("_") or "out": value
        for name, value in reading.values.items()
        if name.endswith("ratio") and not math.isnan(value)
    }
    return max(found.items(), key=lambda one: one[1], default=("", -math.inf))


def _table(texts: Sequence[str], *, numbers: Sequence[str] = ()) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for column in texts:
        table.add_column(column, overflow="fold")
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _text(value: float) -> str:
    return f"{value:.3g}"
