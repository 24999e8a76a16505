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
    help_epilogue="Begin with: `roundoff study flash-attention`",
    version=__version__,
    help_format="markdown",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)
_HELP = {
    "study": "Measure the claims of a paper, with a verdict for each and a report.",
    "bench": "Sweep kernels and recipes over formats, lengths, tiles and inputs.",
    "explain": "Find which recipe a kernel follows, and what is left unexplained.",
    "ablate": "Restore each rounding site to exact: which causes which share of the deviation.",
    "train": "Train a baseline and arms that differ in one thing each, and compare their weights.",
    "diff": "Compare two checkpoints of any size and format, or a series of them.",
    "spikes": "Find where the loss or the gradient norm of a training's log spiked.",
    "report": "Write a run as one self-contained HTML page and as pictures.",
    "list": "Show formats, recipes, kernels, workloads, arms and the like, and what runs here.",
}
_EXAMPLES = {
    "study": """Studies: `flash-attention`, `low-precision-failure`, `recipes`.

    roundoff study flash-attention
""",
    "bench": """Every parameter of the operator is an option too, with one or more values; for
attention: `--batch --heads --kv-heads --seq-len --kv-len --head-dim --v-dim --mask --scale
--inputs --rows --tile`. `roundoff list parameters` says what each takes; `512:4096:x2` and
`1:9:+4` are ranges.

    roundoff bench --kernel torch-cpu-flash --recipe fa2,paper-bf16 --seq-len 512:4096:x2

    roundoff bench --kernel mine.py:attention --mask none,causal --inputs normal,outliers

How many bits of your kernel a recipe explains:

    roundoff bench --baseline recipe:fa2 --kernel mine.py:attention
""",
    "explain": """    roundoff explain torch-cpu-flash

    roundoff explain mine.py:attention --emit repro
""",
    "train": """    roundoff train --candidate fa2@bf16 --yardsticks ulp,rerun,bf16

    roundoff train --workload text-to-image --baseline torch-math --candidate torch-cpu-flash

A model and a patch of yours (`roundoff list workloads` and `roundoff list arms` say what there
is):

    roundoff train --workload mine.py:build --candidate mine.py:patch
""",
    "diff": """    roundoff diff before.safetensors after.safetensors

    roundoff diff runs/baseline/final runs/flash/final --base runs/init -o compared

    roundoff diff step-100.pt step-200.pt step-300.pt --against previous
""",
    "spikes": """    roundoff spikes output/checkpoint-500/trainer_state.json

    roundoff spikes metrics.csv --rule median:limit=6 --rule absolute:limit=20
""",
    "ablate": """Parameters of the operator are options too, as in `bench`, with one value each.

    roundoff ablate paper-bf16 --seq-len 2048

    roundoff ablate torch-cpu-flash --inputs outliers -o ablated

A kernel of your own, through the recipe that it follows:

    roundoff ablate mine.py:attention --recipe fa2
""",
}
for _name, _help in _HELP.items():
    app.command(
        f"roundoff.cli.{_name}:{_name}_command",
        name=_name,
        help=_help,
        help_epilogue=_EXAMPLES.get(_name),
    )


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
