"""`roundoff ablate`: which rounding site causes which share of the deviation."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from roundoff.attribution.ablate import Tell, ablate
from roundoff.attribution.ablation import Ablation, OutputShares, SiteShare, percent
from roundoff.attribution.sweep import Swept
from roundoff.cli.terminal import command_line, messages, print_json, print_table, progress_bar
from roundoff.errors import UsageError
from roundoff.metrics import Interval
from roundoff.operators import OPERATORS
from roundoff.operators.protocol import Operator, Value, normalise

__all__ = ["ablate_command"]

LEGEND = (
    "share: the mean of what a site adds as sites begin to round in random orders (Shapley); "
    "alone: all others exact; restored: what goes away if it alone is exact; left: what remains "
    "once it and all sites before it, from Q to the output, are exact; gain: how far it stretches "
    "(+) or shrinks (-) the output"
)
WORTH_TELLING = 0.01
"""Interactions from this share of the squared error on are shown."""
WORTH_A_LINE = 0.001
"""Sites of less than this share of the squared error are told in one line together."""
Line = tuple[str, ...]


def ablate_command(
    subject: str,
    /,
    *,
    operator: str = "attention",
    recipe: str | None = None,
    format: str = "bf16",
    seeds: int = 4,
    seed: int = 0,
    permutations: int = 16,
    of: str = "",
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    json: Annotated[bool, Parameter(negative="")] = False,
    **parameters: str,
) -> None:
    """Restore each rounding site of a recipe to exact, and show which causes what.

    Parameters
    ----------
    subject:
        A recipe or a kernel (the kernel where both have the name; recipe:NAME for the other);
        also yours, as file.py:function.
    operator:
        What is computed.
    recipe:
        The recipe that a kernel is ablated through (default: the one of its name).
    format:
        Storage format of the inputs.
    seeds:
        Number of seeds, each a draw of the inputs; intervals are over them.
    seed:
        The first seed.
    permutations:
        Orders of the sites for each seed, half of them the reverse of others.
    of:
        Outputs to take apart, comma-separated (default: all but statistics of rows).
    output:
        A folder for ablation.json, ablation.html and ablation.png.
    json:
        Print one JSON document on standard output, and messages on standard error.
    """
    if seeds < 1:
        raise UsageError(f"--seeds {seeds}: expected at least 1")
    if output is not None:
        _check(output)
    given = {name.replace("-", "_"): text for name, text in parameters.items()}
    with contextlib.ExitStack() as stack:
        found = ablate(
            subject, operator=operator, recipe=recipe, format=format,
            parameters=_values(OPERATORS[operator], given),
            seeds=range(seed, seed + seeds), permutations=permutations,
            outputs=[name.strip() for name in of.split(",")] if of else None, tell=_bar(stack),
        )  # fmt: skip
    document = {**found.to_record(), "command": command_line()}
    if json:
        print_json("ablation", document)
    else:
        _show(found)
    where = "" if output is None else f"{_written(document, output)}   "
    messages().print(f"{where}again: {command_line()}", style="dim", soft_wrap=True)


def _bar(stack: contextlib.ExitStack) -> Tell:
    """A bar that begins with the first run: what is refused before it is told in one line."""
    bars: list[Callable[..., None]] = []

    def tell(done: int, total: int) -> None:
        if not bars:
            bars.append(stack.enter_context(progress_bar("ablating", total)))
        bars[0](done, total)

    return tell


def _values(operator: Operator, given: Mapping[str, str]) -> dict[str, Value]:
    parsed = normalise(operator.parameters, given)
    return {name: parsed[name] for name in given}


def _check(folder: Path) -> None:
    from roundoff.report.files import check_folder  # noqa: PLC0415 - imports the charts

    check_folder(folder)


def _written(document: Mapping[str, Any], folder: Path) -> str:
    from roundoff.report.ablation import write_ablation  # noqa: PLC0415 - imports the charts

    return f"report: {write_ablation(document, folder)[0]}"


def _show(found: Ablation) -> None:
    console = messages()
    for note in found.notes:
        console.print(note, style="yellow", soft_wrap=True, markup=False)
    for shares in found.outputs.values():
        print(f"{shares.verdict}.")
        _show_output(found, shares)
    if found.swept:
        _show_swept(found)
    console.print(LEGEND, style="dim")
    over = f"{len(found.seeds)} seeds" if found.units == "seeds" else "permutations of one seed"
    orders = f"{found.permutations} permutations" if found.permutations else "all coalitions"
    console.print(f"95 % intervals over {over}, {orders}; {found.coalitions} runs", style="dim")


def _show_output(found: Ablation, shares: OutputShares) -> None:
    size = f"rmse {shares.rmse.estimate:.2e}, gain {signed(shares.gain)}"
    print_table(
        f"{shares.name} of {found.subject}: {size}",
        ["site", "rounds to", "share>", "alone>", "restored>", "left>", "gain>"],
        _lines(shares),
    )
    print(_interactions(shares))


def _lines(shares: OutputShares) -> Iterator[Line]:
    sites = {site.name: site for site in shares.sites if site.rounds}
    told = [name for name in shares.shares if name in sites and _counts(sites[name])]
    for name in told:
        yield _line(sites[name], shares.gain_shares[name])
    if fewer := [site for name, site in sites.items() if name not in told]:
        together = sum(site.share.estimate for site in fewer)
        yield (f"{len(fewer)} others", "", f"{100 * together:.1f} %", *[""] * 4)
    yield ("order, inner sums", "carrier", percent(shares.carrier), "", "", "", "")
    if shares.unexplained is not None:
        yield ("not explained", "by the recipe", percent(shares.unexplained), "", "", "", "")
    if abs(shares.rest.estimate) >= WORTH_TELLING / 100:
        yield ("rest", "all sites exact", percent(shares.rest), "", "", "", "")
    yield ("sum", "", f"{100 * shares.total:.0f} %", "", "", "", "")


def _counts(site: SiteShare) -> bool:
    parts = (site.share, site.alone, site.restored)
    return any(abs(part.estimate) >= WORTH_A_LINE for part in parts)


def _line(site: SiteShare, of_gain: float) -> Line:
    single = (f"{100 * part.estimate:.1f} %" for part in (site.alone, site.restored, site.left))
    gain = f"{site.gain.estimate:+.0e}"
    if not math.isnan(of_gain):
        gain += f" {100 * of_gain:4.0f} %"
    return (site.name, site.choice, percent(site.share), *single, gain)


def _interactions(shares: OutputShares) -> str:
    """The idle sites, and which sites do more or less together than each alone."""
    idle = ", ".join(_idle(shares.sites))
    pairs = sorted(shares.pairs.items(), key=lambda item: -abs(item[1].estimate))
    told = [
        f"{a} with {b} {percent(value)}"
        for (a, b), value in pairs[:6]
        if abs(value.estimate) >= WORTH_TELLING
    ]
    lines = [f"interactions, all sites: {percent(shares.interaction)}"]
    if told:
        lines.append(f"  the largest: {'; '.join(told)}")
    if others := [s.name for s in shares.sites if s.rounds and not _counts(s)]:
        lines.append(f"others, each under {WORTH_A_LINE:.1%}: {', '.join(others)}")
    if idle:
        lines.append(f"do not round here: {idle}")
    return "\n".join(_folded(lines))


def _idle(sites: Sequence[SiteShare]) -> Iterator[str]:
    """The sites that do not round; of the backward pass only where it is run."""
    backward = any(site.rounds and site.name.startswith("backward.") for site in sites)
    for site in sites:
        if not site.rounds and (backward or not site.name.startswith("backward.")):
            yield site.name


def _folded(lines: Iterable[str]) -> Iterator[str]:
    import textwrap  # noqa: PLC0415

    for line in lines:
        yield textwrap.fill(line, 100, subsequent_indent="    ")


def _show_swept(found: Ablation) -> None:
    name = next(iter(found.outputs))
    rows: dict[str, list[Swept]] = {}
    for swept in found.swept:
        rows.setdefault(swept.question, []).append(swept)
    print_table(
        f"choices without an exact one: squared error of {name} over the recipe's",
        ["choice", "each answer alone"],
        [(question, ", ".join(_answers(answers, name))) for question, answers in rows.items()],
    )


def _answers(answers: Sequence[Swept], name: str) -> Iterator[str]:
    """Each answer that differs from the recipe's, and those that do not together."""
    yield from (_answer(swept, name) for swept in answers if not swept.same)
    same = [swept.answer for swept in answers if swept.same]
    longer = sorted(answer for answer in same if isinstance(answer, int))
    others = [s.answer for s in answers if isinstance(s.answer, int) and not s.same]
    if len(longer) > 2 and longer[0] > max(others, default=0):
        same = [answer for answer in same if not isinstance(answer, int)]
        same.append(f"{longer[0]} and more")
    if same:
        yield f"{' or '.join(map(str, same))} (the same)"


def _answer(swept: Swept, name: str) -> str:
    if swept.refused:
        return f"{swept.answer} not possible"
    return f"{swept.answer} {swept.ratios[name].estimate:.2f}x"


def signed(gain: Interval) -> str:
    """A gain with its interval, `+1.2e-04 [+1.0e-04, +1.4e-04]`."""
    return f"{gain.estimate:+.1e} [{gain.low:+.1e}, {gain.high:+.1e}]"
