"""`roundoff report`: a run as one page that needs nothing else, and as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from roundoff.cli.terminal import command_line, messages, print_json
from roundoff.store import Run

__all__ = ["report_command"]


def report_command(
    run: Path,
    /,
    *,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write a run as one self-contained HTML page and as pictures.

        roundoff report runs/flash-attention-quick

    Parameters
    ----------
    run:
        The run directory.
    output:
        The folder for report.html and figures/ (default: the run itself).
    json:
        Print one JSON document on standard output.
    """
    from roundoff.report import write_report  # noqa: PLC0415 - imports the charts

    found = Run.open(run)
    pages = write_report(found, folder=output)
    if json:
        print_json("report", {"run": str(found.path), "report": [str(p) for p in pages]})
        return
    console = messages()
    console.print(f"report: {pages[0]}")
    pictures = len(pages) - 1
    console.print(f"{pictures} pictures beside it   again: {command_line()}", style="dim")
