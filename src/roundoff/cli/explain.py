"""`roundoff explain`: which recipe a kernel follows, and what is left unexplained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from roundoff.attribution.emit import emit
from roundoff.attribution.explain import Explanation, SiteFinding, explain_subject
from roundoff.cli.terminal import command_line, counting, messages, print_json, print_table
from roundoff.operators import OPERATORS
from roundoff.records import SubjectName
from roundoff.store.disk import check_writable, replace_file
from roundoff.store.json import dumps
from roundoff.subjects import resolve_subject

__all__ = ["explain_command"]

_COLUMNS = ["site!", "choice!", "how sure!", "what it means"]


def explain_command(
    kernel: str,
    /,
    *,
    operator: str = "attention",
    format: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    threads: Annotated[int, Parameter(validator=Number(gte=1))] = 1,
    layout: Literal["bhsd", "bshd"] | None = None,
    seq_multiple: int | None = None,
    emit_to: Annotated[Path | None, Parameter(name="--emit")] = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Find the recipe that gives a kernel's bits, site by site, and judge what it leaves over.

        roundoff explain torch-cpu-flash

    Parameters
    ----------
    kernel:
        The name of a kernel, or yours as module:function or path/to/file.py:function.
    operator:
        What the kernel computes: attention or softmax.
    format:
        The format of the inputs (default: the first of bf16, fp16, fp32 that the kernel takes).
    seed:
        The seed of probes and natural inputs.
    device:
        cpu, or cuda, where the kernel is to run.
    threads:
        Threads that the kernel may use.
    layout:
        Order of the axes of your kernel: bhsd or bshd.
    seq_multiple:
        Your kernel takes lengths that are multiples of this.
    emit_to:
        A folder for a repro of the worst rows (.safetensors) and the recipe's declaration.
    output:
        A file for the JSON document.
    json:
        Print one JSON document on standard output.
    """
    if output is not None:
        check_writable(output)
    if emit_to is not None:
        check_writable(emit_to, folder=True)
    name = SubjectName("kernel", kernel, layout, seq_multiple)
    subject = resolve_subject(OPERATORS[operator], name)
    with counting("recipes tried") as tell:
        found = explain_subject(
            subject, format=format, seed=seed, device=device, threads=threads, tell=tell
        )
    document = found.to_record() | {"command": command_line()}
    if output is not None:
        replace_file(output, dumps(document) + "\n")
    written = emit(found, emit_to) if emit_to is not None else []
    if json:
        print_json("explain", document)
        return
    _show(found)
    console = messages()
    for path in written:
        console.print(f"written: {path}")
    console.print(f"again: {command_line()}", style="dim", soft_wrap=True)


def _show(found: Explanation) -> None:
    console = messages()
    for note in found.notes:
        console.print(note, style="dim", soft_wrap=True, markup=False)
    if found.residue.another:
        print(f"{found.kernel} in {found.format.name}: {found.verdict}")
        return
    print_table(
        f"{found.kernel} in {found.format.name}: {found.verdict}", _COLUMNS,
        [(name, _choice(site), _sure(site), site.doc) for name, site in found.sites.items()
         if not site.idle],
    )  # fmt: skip
    idle = [name for name, site in found.sites.items() if site.idle]
    rest = found.residue
    if idle:
        console.print(f"no bit depends on: {', '.join(idle)}", style="dim", soft_wrap=True)
    console.print(
        f"on natural inputs ({rest.elements} elements): match {rest.match:.4%}, "
        f"null {rest.null:.4%} (golden rounded once), lift {rest.lift:.4%}, "
        f"order floor {rest.order_floor:.4%}; {_size(rest.err_ratio)}, "
        f"gain {rest.gain:.2g} ± {rest.gain_se:.1g}",
        soft_wrap=True,
    )
    if rest.repeats < 1:
        console.print(
            f"not deterministic: a second call repeats {rest.repeats:.4%} of the bits",
            style="yellow",
        )


def _size(ratio: float) -> str:
    return "both exact" if math.isnan(ratio) else f"error {ratio:.3g} times the recipe's"


def _choice(site: SiteFinding) -> str:
    return " | ".join(str(choice) for choice in (site.choice, *site.equals))


def _sure(site: SiteFinding) -> str:
    return "cannot be told apart" if site.equals else site.confidence
