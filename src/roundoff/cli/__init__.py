"""The command line: one short file a sub-command, each imported only when it is called."""

from __future__ import annotations

import sys

import cyclopts
from cyclopts import App, CycloptsError

from roundoff import __version__
from roundoff.errors import RoundoffError

__all__ = ["app", "main"]

BAD = 2
INTERRUPTED = 130

app = App(
    name="roundoff",
    help="How far an optimization moves the numbers, where from, and whether it matters.",
    version=__version__,
    help_format="markdown",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)
for _name, _help in {
    "study": "Measure the claims of a paper, with a verdict for each and a report.",
    "bench": "Sweep kernels and recipes over formats, lengths, tiles and inputs.",
    "report": "Write a run as one self-contained HTML page and as pictures.",
    "list": "Show formats, recipes, kernels, inputs, metrics and studies, and what runs here.",
}.items():
    app.command(f"roundoff.cli.{_name}:{_name}_command", name=_name, help=_help)


def main(arguments: list[str] | None = None) -> None:
    """Run the command: exit 0 when done, 2 where it cannot be, with one line that says why."""
    try:
        status = app(arguments)
    except (RoundoffError, CycloptsError) as error:
        _complain(error)
        sys.exit(BAD)
    except KeyboardInterrupt:
        print("\nroundoff: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.exit(0)
    sys.exit(status if isinstance(status, int) else 0)


def _complain(error: Exception) -> None:
    text = " ".join(str(error).split())
    if isinstance(error, cyclopts.UnknownOptionError):
        text += " (roundoff <command> --help lists the options)"
    print(f"roundoff: {text}", file=sys.stderr)
