"""`roundoff diff`: how far two checkpoints, or a series of them, lie apart."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from roundoff.cli.differences import show_diff, show_series
from roundoff.cli.terminal import command_line, messages, print_json, progress_bar
from roundoff.errors import UsageError
from roundoff.weights.diff import Diff, compare_checkpoints
from roundoff.weights.heap import MOST_PASSES
from roundoff.weights.names import read_renames
from roundoff.weights.readers import open_checkpoint

__all__ = ["diff_command"]

MIB = 1 << 20
UNLIMITED = 1 << 62


def diff_command(
    *checkpoints: Path,
    base: Path | None = None,
    mapping: Annotated[Path | None, Parameter(name="--map")] = None,
    against: Literal["first", "previous"] = "first",
    worst: Annotated[int, Parameter(validator=Number(gte=0))] = 10,
    pooled: bool | None = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Compare two checkpoints tensor by tensor, layer by layer and as a whole; A is golden.

    Parameters
    ----------
    checkpoints:
        Two checkpoints A and B, or a series: safetensors, torch (.pt, .bin), folders of Hugging
        Face or of torch.distributed.checkpoint.
    base:
        A checkpoint C that both come from: the updates A - C and B - C are compared too.
    mapping:
        A TOML file whose table [rename] gives names in A their names in B.
    against:
        What each checkpoint of a series is compared with.
    worst:
        How many of the worst tensors are shown.
    pooled:
        Take the pooled W1 of all tensors however many passes it needs, or not at all
        (default: up to four passes; weights of 64 GiB need no more, and 16-bit ones none).
    output:
        A folder for diff.json, diff.html and diff.png, a map of layers and metrics.
    json:
        Print one JSON document on standard output, and messages on standard error.
    """
    if len(checkpoints) < 2:
        raise UsageError(f"diff compares two checkpoints or more, not {len(checkpoints)}")
    if output is not None:
        _check(output)
    renames = None if mapping is None else read_renames(mapping)
    passes = {None: MOST_PASSES, True: UNLIMITED, False: 0}[pooled]
    opened = [open_checkpoint(path) for path in checkpoints]
    common = None if base is None else open_checkpoint(base)
    pairs = [(opened[0] if against == "first" else a, b)
             for a, b in itertools.pairwise(opened)]  # fmt: skip
    found: list[Diff] = []
    for a, b in pairs:
        with contextlib.ExitStack() as stack:
            found.append(
                compare_checkpoints(
                    a, b, base=common, renames=renames, most_passes=passes, tell=_bar(stack, b.path)
                )
            )
    document = _document(found)
    if json:
        print_json("diff", document)
    elif len(found) == 1:
        show_diff(found[0], worst)
    else:
        show_series(found, against)
    where = "" if output is None else f"{_written(document, output)}   "
    messages().print(f"{where}again: {command_line()}", style="dim", soft_wrap=True, markup=False)


def _document(found: Iterable[Diff]) -> dict[str, Any]:
    """One comparison's own document, or a series of them."""
    records = [one.to_record() for one in found]
    body = records[0] if len(records) == 1 else {"series": records}
    return {**body, "command": command_line()}


def _bar(stack: contextlib.ExitStack, path: str) -> Callable[[int, int], None]:
    """A bar that begins once there is something to tell."""
    bars: list[Callable[..., None]] = []

    def tell(done: int, total: int) -> None:
        if not bars:
            bars.append(stack.enter_context(progress_bar(f"{Path(path).name[:40]}, MiB", 0)))
        bars[0](done // MIB, total // MIB)

    return tell


def _check(folder: Path) -> None:
    from roundoff.report.files import check_folder  # noqa: PLC0415 - imports the charts

    check_folder(folder)


def _written(document: dict[str, Any], folder: Path) -> str:
    from roundoff.report.diff import write_diff  # noqa: PLC0415 - imports the charts

    return f"report: {write_diff(document, folder)[0]}"
