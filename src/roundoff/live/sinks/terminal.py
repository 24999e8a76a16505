"""The last readings as a table that stays in place; where there is no terminal, a line a step."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import IO

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from roundoff.live.findings import IN_A_ROW
from roundoff.live.watch import LIMIT
from roundoff.records import Finding, Reading

__all__ = ["Terminal"]

WIDTH = 100
SHOWN = ("rmse", "gain", "entropy", "logit_max")
"""What is shown of a head beside its largest ratio, if it was measured."""


class Terminal:
    """What was seen last: tensors by kind, the `heads` worst by ratio, what stood out so far.

    A NaN is worst of all. Of a head whose ratio is near `limit`, or beyond it, stands at how many
    samples in a row it was beyond. `file` is standard error, where progress goes, unless it is
    given; where that is no terminal, a line a sampled step is printed, and what stood out in it.
    """

    def __init__(
        self, *, heads: int = 5, limit: float = LIMIT, file: IO[str] | None = None
    ) -> None:
        self._heads, self._limit, self._file = heads, limit, file
        self._live: Live | None = None
        self._findings: list[Finding] = []
        self._beyond: Counter[str] = Counter()

    def write(self, step: int, readings: Sequence[Reading], findings: Sequence[Finding]) -> None:
        """Show those of `step`."""
        self._findings += findings
        for reading in readings:
            beyond = _ratio(reading)[1] > self._limit
            self._beyond[reading.place] = self._beyond[reading.place] + 1 if beyond else 0
        if self._live is None:
            self._live = _live(self._file or sys.stderr)
        if not self._live.console.is_terminal:
            self._live.console.print(_lines(step, readings, findings), soft_wrap=True)
            return
        self._live.start()
        self._live.update(self._shown(step, readings), refresh=True)

    def close(self) -> None:
        """Leave the last table where it is."""
        live, self._live = self._live, None
        if live is not None and live.console.is_terminal:
            live.stop()

    def _shown(self, step: int, readings: Sequence[Reading]) -> RenderableType:
        findings = self._findings
        parts: list[RenderableType] = [Text(f"step {step}", style="bold")]
        if kinds := [r for r in readings if r.head is None]:
            parts.append(_kinds(kinds))
        worst = _worst_of(readings)[: self._heads]
        if worst:
            parts.append(self._of_heads(worst))
        if any(self._is_near(reading) for reading in worst):
            parts.append(Text(f"found: beyond {self._limit:g} at {IN_A_ROW} samples in a row"))
        more = f"{len(findings)} findings" if len(findings) != 1 else "1 finding"
        parts.append(Text(more if findings else "nothing stood out"))
        parts += [Text(str(finding), style="red") for finding in findings[-3:]]
        return Group(*parts)

    def _of_heads(self, readings: Sequence[Reading]) -> Table:
        shown = [name for name in SHOWN if any(name in r.values for r in readings)]
        table = _table(["worst heads"], numbers=["ratio", "of", "beyond", *shown])
        for reading in readings:
            of, ratio = _ratio(reading)
            row = f"{self._beyond[reading.place]} in a row" if self._is_near(reading) else ""
            numbers = (_text(reading.values[n]) if n in reading.values else "" for n in shown)
            table.add_row(Text(reading.place), _text(ratio) if of else "", of, row, *numbers)
        return table

    def _is_near(self, reading: Reading) -> bool:
        return _ratio(reading)[1] > self._limit / 2


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


def _lines(step: int, readings: Sequence[Reading], findings: Sequence[Finding]) -> Text:
    """One line: a number of each kind, the worst head; and a line for each finding."""
    parts: list[str] = []
    for reading in _of_kinds([r for r in readings if r.head is None]):
        measure, value = next(iter(reading.values.items()))
        parts.append(f"{reading.of} {measure} {_text(value)}")
    for head in _worst_of(readings)[:1]:
        of, ratio = _ratio(head)
        error = f"ratio {_text(ratio)} ({of})" if of else "no ratio"
        parts.append(f"worst head {head.place} {error}")
    return Text("\n".join([f"step {step}: {', '.join(parts)}", *map(str, findings)]))


def _of_kinds(readings: Sequence[Reading]) -> list[Reading]:
    """Of each kind of tensors that of all together where it was read, else the largest of each."""
    found: list[Reading] = []
    for of in dict.fromkeys(r.of for r in readings):
        mine = [r for r in readings if r.of == of]
        found += [r for r in mine if r.pooled] or [_largest(mine)]
    return found


def _kinds(readings: Sequence[Reading]) -> Table:
    table = _table(["tensors", "of", "measured"])
    for reading in _of_kinds(readings):
        texts = [f"{name} {_text(value)}" for name, value in reading.values.items()]
        table.add_row(Text(reading.of), Text(reading.name), Text("  ".join(texts)))
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


def _worst_of(readings: Sequence[Reading]) -> list[Reading]:
    return sorted((r for r in readings if r.head is not None), key=_worst)


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
