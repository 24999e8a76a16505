"""`roundoff bench`: sweep kernels and recipes, and show what came out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from roundoff.bench.plan import make_plan, read_plan
from roundoff.cli.deviations import LEGEND, Row, deviations, doubtful, point, varied
from roundoff.cli.planned import show_plan
from roundoff.cli.running import Running, carry_out
from roundoff.cli.terminal import messages, print_json, print_table, say_again
from roundoff.errors import UsageError
from roundoff.operators import OPERATORS
from roundoff.store import Run
from roundoff.store.json import digest

__all__ = ["bench_command"]


def bench_command(
    plan: Path | None = None,
    /,
    *,
    operator: str = "attention",
    baseline: str | None = None,
    kernel: str = "",
    recipe: str = "",
    format: str = "bf16",
    seeds: int = 5,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 1,
    layout: Literal["bhsd", "bshd"] | None = None,
    seq_multiple: int | None = None,
    timing: Annotated[bool, Parameter(negative="")] = False,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    running: Running = Running(),
    **axes: str,
) -> int:
    """Sweep kernels and recipes over formats, lengths, tiles and inputs.

    Parameters
    ----------
    plan:
        A TOML file with `[[sweep]]` tables, in place of all options that say what to measure.
    operator:
        What is computed.
    baseline:
        The kernel or recipe (as recipe:NAME) that the others are compared with (default: the
        operator's first kernel, torch-math for attention).
    kernel:
        Kernels, comma-separated; also yours, as module:function or file.py:function.
    recipe:
        Recipes, comma-separated.
    format:
        Storage formats, comma-separated.
    seeds:
        Number of seeds, each a draw of the inputs.
    seed:
        The first seed.
    device:
        Where to compute: cpu, cuda.
    threads:
        Threads of each worker; part of a cell's identity, as sums depend on it.
    layout:
        Order of the axes of your kernels: bhsd or bshd.
    seq_multiple:
        Your kernels take lengths that are multiples of this.
    timing:
        Also time the kernels, alone, in turn with the baseline.
    dry_run:
        Show what varies, the cells and their cost, and measure nothing.
    """
    given = bool(kernel or recipe or baseline or layout or seq_multiple or timing or axes)
    if plan is not None:
        if given or (format, seeds, seed, device, threads) != ("bf16", 5, 0, "cpu", 1):
            raise UsageError(f"{plan} says what to measure; write further options into it")
        made = read_plan(plan)
    else:
        made = make_plan({"sweep": [{
            "operator": operator, "baseline": baseline or _first_kernel(operator),
            "kernels": kernel, "recipes": recipe, "formats": format, "seeds": seeds,
            "first_seed": seed, "device": device, "threads": threads, "layout": layout,
            "seq_multiple": seq_multiple, "timing": timing,
            "axes": {name.replace("-", "_"): text for name, text in axes.items()},
        }]}, place=_option)  # fmt: skip
    if dry_run:
        show_plan(made, json=running.json)
        return 0
    document = made.model_dump(mode="json")
    folder = running.output or Path("runs") / f"bench-{digest(document)[:8]}"
    run, named, _ = carry_out(made.cells(), running, folder=folder, manifest={"plan": document})
    rows = [row for row in run.rows() if row["id"] in named]
    _show(run, rows, running)
    if plan is None and not (kernel or recipe):
        messages().print("only the baseline was measured; name a --kernel or a --recipe")
    say_again(folder)
    return 2 if _is_empty_handed(rows) else 0


def _is_empty_handed(rows: Sequence[Row]) -> bool:
    """Whether nothing was measured, or a candidate failed wherever it was tried."""
    statuses: dict[str, set[str]] = {}
    for row in rows:
        statuses.setdefault(row["cell"]["candidate"], set()).add(row["status"])
    hopeless = any("failed" in found and "ok" not in found for found in statuses.values())
    return hopeless or (bool(rows) and all("ok" not in found for found in statuses.values()))


def _first_kernel(operator: str) -> str:
    from roundoff.kernels import kernels_of  # noqa: PLC0415 - imports the adapters

    found = kernels_of(OPERATORS[operator].name)
    if not found:
        raise UsageError(f"operator {operator!r} has no kernel; name a --baseline recipe:NAME")
    return found[0].name


_OPTIONS = {"kernels": "kernel", "recipes": "recipe", "formats": "format", "first_seed": "seed"}


def _option(place: str) -> str:
    """The start of a message on a place in a plan, such as `sweep.0.seeds`: its option."""
    name = place.split(".")[2]
    # What is wrong with an axis names its option itself.
    return "" if name == "axes" else f"--{_OPTIONS.get(name, name).replace('_', '-')}: "


def _show(run: Run, rows: Sequence[Row], running: Running) -> None:
    if running.json:
        print_json("bench", {"run": str(run.path), "rows": rows})
        return
    done = [row for row in rows if row["status"] == "ok" and "outputs" in row]
    if done:
        title = f"deviation from golden, {len(done)} cells (median over seeds)"
        print_table(title, *deviations(done))
        messages().print(LEGEND, style="dim")
        for text in doubtful(done):
            messages().print(text, style="yellow", soft_wrap=True)
    timed = [row for row in rows if row["status"] == "ok" and "timing" in row]
    if timed:
        names = varied(timed)
        columns = ["candidate!", "cell", "seconds>", "x baseline>"]
        print_table("time", columns, [
            (r["cell"]["candidate"], point(r, names), f"{r['timing']['candidate_s']:.3g}",
             f"{r['timing']['ratio']:.3g}")
            for r in timed
        ])  # fmt: skip
