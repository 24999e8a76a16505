"""`roundoff spikes`: where a finished or running log spiked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from roundoff.cli.terminal import command_line, messages, print_json, print_table
from roundoff.errors import UsageError
from roundoff.live.logs import Series, chosen, read_log
from roundoff.live.rules import DEFAULT_RULES, Rule, find, parse_rule
from roundoff.records import Spike
from roundoff.store.disk import check_writable, replace_file
from roundoff.store.json import dumps

__all__ = ["spikes_command"]

_COLUMNS = ["step>", "series", "value>", "usual>", "x usual>", "bound>", "rule!"]


def spikes_command(
    *logs: Path,
    series: str | None = None,
    rule: tuple[str, ...] = (),
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Find the spikes of training logs: of losses and gradient norms, unless others are named.

    Parameters
    ----------
    logs:
        trainer_state.json, a folder of Hugging Face's Trainer, TensorBoard events or a folder of
        them, .csv, .jsonl, or a run of roundoff.
    series:
        A pattern (*, ?) of the series to look at instead.
    rule:
        A rule by name, and what is other than usual of it: median:limit=6,window=100. May be given
        several times (default: nonfinite and median; `roundoff list rules` shows all).
    output:
        A file for the JSON document.
    json:
        Print one JSON document on standard output, and messages on standard error.
    """
    if not logs:
        raise UsageError("spikes reads one log or more, and none was given")
    if output is not None:
        check_writable(output)
    rules = tuple(parse_rule(text) for text in rule) or DEFAULT_RULES
    read = [(log, one) for log in logs for one in chosen(read_log(log), series)]
    found = [(log, spike) for log, one in read for spike in find(one.name, one.points, *rules)]
    document = _document(read, found, rules)
    if output is not None:
        replace_file(output, dumps(document) + "\n")
    if json:
        print_json("spikes", document)
    else:
        _show(read, found, several=len(logs) > 1)
    messages().print(f"again: {command_line()}", style="dim", soft_wrap=True, markup=False)


def _document(
    read: list[tuple[Path, Series]], found: list[tuple[Path, Spike]], rules: tuple[Rule, ...]
) -> dict[str, Any]:
    return {
        "rules": [{"rule": rule.name, **rule.model_dump()} for rule in rules],
        "series": [
            {"log": str(log), "series": one.name, "values": len(one.points),
             "first": one.points[0][0], "last": one.points[-1][0]}
            for log, one in read if one.points
        ],
        "spikes": [{"log": str(log), **spike.to_record()} for log, spike in found],
        "command": command_line(),
    }  # fmt: skip


def _show(
    read: list[tuple[Path, Series]], found: list[tuple[Path, Spike]], *, several: bool
) -> None:
    values = sum(len(one.points) for _, one in read)
    what = f"{len(found)} spike{'' if len(found) == 1 else 's'} in {values} values of {len(read)} "
    title = f"{what}series"
    if not found:
        print(f"{title}: {', '.join(one.name for _, one in read[:8])}")
        return
    rows = [
        (spike.step, f"{log}: {spike.series}" if several else spike.series, _short(spike.value),
         _short(spike.usual), _short(spike.value / spike.usual if spike.usual else math.nan),
         _short(spike.bound), spike.rule)
        for log, spike in sorted(found, key=lambda pair: (str(pair[0]), pair[1].step))
    ]  # fmt: skip
    print_table(title, _COLUMNS, rows)


def _short(value: float) -> str:
    return f"{value:.4g}"
