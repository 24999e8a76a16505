"""The terminal: consoles, tables of at most 100 columns, progress bars, strict JSON.

With `--json`, standard output holds one JSON document and nothing else; all that is
meant for people goes to standard error.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from roundoff.records import SCHEMA
from roundoff.store.json import dumps

__all__ = [
    "WIDTH",
    "command_line",
    "counting",
    "messages",
    "print_json",
    "print_table",
    "progress_bar",
    "say_again",
]

WIDTH = 100
FOLDED = 16
"""Columns that a folded column of a table keeps at least, however wide the others are."""


def messages() -> Console:
    """The console for people, on standard error."""
    return Console(stderr=True, width=_width(sys.stderr), highlight=False)


def _width(stream: Any) -> int:
    if not stream.isatty():
        return WIDTH
    return min(WIDTH, os.get_terminal_size(stream.fileno()).columns)


def print_json(kind: str, document: Mapping[str, Any]) -> None:
    """Write one strict JSON document with its schema version to standard output."""
    print(dumps({"schema": SCHEMA, "kind": kind, **document}))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table to standard output.

    A column whose name ends in `>` is aligned right; neither it nor one in `!` is folded, for
    which the table becomes wider where it must.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    texts = [[str(cell) for cell in row] for row in rows]
    needed = 2
    for at, column in enumerate(columns):
        name, folds = column.rstrip(">!"), column[-1] not in "!>"
        width = FOLDED if folds else max(cell_len(text) for text in (name, *(r[at] for r in texts)))
        needed += width + 3  # two spaces and a divider
        table.add_column(
            name,
            justify="right" if ">" in column else "left",
            overflow="fold",
            no_wrap=not folds,
        )
    for row in texts:
        table.add_row(*row)
    console = Console(width=max(_width(sys.stdout), needed), highlight=False)
    if title:  # a table's own title is folded to the table's width
        console.print(title, style="bold", markup=False, soft_wrap=True)
    console.print(table)


@contextlib.contextmanager
def progress_bar(text: str, total: int) -> Generator[Callable[..., None]]:
    """A bar on standard error; call what it yields with the number of things done so far.

    A second number, where it is given, is a new total.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=messages()) as bar:
        task = bar.add_task(text, total=total)

        def advance(done: int, of: int | None = None) -> None:
            bar.update(task, completed=done, total=of)

        yield advance


@contextlib.contextmanager
def counting(text: str) -> Generator[Callable[[int], None]]:
    """A count on standard error, for work whose end is not known; call what it yields with it."""
    columns = (SpinnerColumn(), TextColumn("{task.completed} {task.description}"))
    with Progress(*columns, TimeElapsedColumn(), console=messages(), transient=True) as bar:
        task = bar.add_task(text, total=None)
        yield lambda done: bar.update(task, completed=done)


def command_line() -> str:
    """The command that is running, as one would type it."""
    return shlex.join(["roundoff", *sys.argv[1:]])


def say_again(place: object) -> None:
    """The last line of a command: where its results are, and how to have them again."""
    messages().print(f"run: {place}   again: {command_line()}", style="dim", soft_wrap=True)
