"""Tables of `roundoff diff`: what a comparison of checkpoints looks like in a terminal."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from rich.markup import escape

from roundoff.cli.terminal import WIDTH, messages, print_table
from roundoff.metrics.weights import WeightDistance
from roundoff.weights.diff import Diff, GroupDiff
from roundoff.weights.tensors import TensorDiff

__all__ = ["printable", "shortened", "show_diff", "show_series"]

MOST_GROUPS = 40
"""Layers that are shown; beyond it, the worst of them."""
MOST_NAMES = 5
LEAST_NAME = 12
"""Characters of a name, whatever stands beside it."""
LEGEND = (
    "rel_l2 = |B - A| / |A|; steps: mean distance in numbers of the dtype; flips: opposite signs; "
    "W1 pool: all values in one heap; W1 mean: of the tensors' own, by size; n: tensors; "
    "names are cut at '..' (--json has them whole)"
)
COLUMNS = ["max_diff>", "rel_l2>", "1-cos>", "steps>", "flips %>"]
POOLED = ["W1 pool>", "W1 mean>"]


def printable(name: str, limit: int = 0) -> str:
    """A name from a file as it may stand in a terminal: no control characters, no markup."""
    text = _visible(name)
    if limit and len(text) > limit:
        text = f"{text[: limit // 2 - 1]}..{text[-(limit - limit // 2 - 1) :]}"
    return escape(text)


def shortened(names: Sequence[str], limit: int) -> list[str]:
    """The names in at most `limit` characters, cut where they still tell each other apart.

    Once, near the middle; where no such cut does, at the parts that most names share.

    >>> shortened(["model.layers.10.q.weight", "model.layers.11.q.weight", "head"], 20)
    ['model.la..0.q.weight', 'model.la..1.q.weight', 'head']
    """
    common = Counter(part for name in names for part in set(name.split(".")))
    taken = {name for name in names if len(name) <= limit}
    shown: list[str] = []
    for name in names:
        text = name
        if len(name) > limit:
            text = cut = _cut(name, names, limit) or _parts(name, common, limit)
            count = 1
            while text in taken:  # nothing tells them apart
                count += 1
                text = cut[: limit - 1 - len(str(count))] + f"#{count}"
            taken.add(text)
        shown.append(text)
    return shown


def _cut(name: str, names: Sequence[str], limit: int) -> str:
    """A name without a run of it that leaves two ends which no other has; nothing if none does."""
    kept = limit - 2
    for head in sorted(range(kept + 1), key=lambda head: abs(2 * head - kept)):
        start, end = name[:head], name[len(name) - kept + head :]
        others = (n for n in names if n != name)
        if not any(n.startswith(start) and n.endswith(end) for n in others):
            return f"{start}..{end}"
    return ""


def _parts(name: str, common: Counter[str], limit: int) -> str:
    """The parts of a name that fewest names have, numbers before all."""
    parts: list[str] = name.split(".")
    for part in sorted(set(parts), key=lambda part: (part.isdigit(), -common[part])):
        parts = ["" if kept == part else kept for kept in parts]
        text = re.sub(r"\.{2,}", "..", f".{'.'.join(parts)}.")
        text = re.sub(r"^\.(?!\.)|(?<!\.)\.$", "", text)
        if len(text) <= limit:
            return text
    return name[: limit - 2] + ".."


def _print_named(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first column has names, in the room that the others leave to them."""
    others = list(zip(*([name.rstrip(">!") for name in head], *rows), strict=True))[1:]
    room = WIDTH - sum(3 + max(map(len, column)) for column in others) - 5
    names = shortened([_visible(row[0]) for row in rows], max(room, LEAST_NAME))
    cut = [(escape(name), *row[1:]) for name, row in zip(names, rows, strict=True)]
    print_table(title, head, cut)


def _visible(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def show_diff(found: Diff, worst: int) -> None:
    """Print what came of two checkpoints."""
    for line in _headlines(found):
        print(line)
    groups = found.groups
    title = "layers"
    if len(groups) > MOST_GROUPS:
        groups = sorted(groups, key=lambda g: -_number(g.distance.rel_l2))[:MOST_GROUPS]
        title = f"the {MOST_GROUPS} worst of {len(found.groups)} layers (--json has all)"
    head = ["layer!", "n>", *COLUMNS, *POOLED]
    rows = [_group(group) for group in groups]
    if len(found.groups) > 1 or found.overall.tensors:
        rows.append(_group(found.overall))
    rows += map(_group, found.optimizer)
    _print_named(title, head, rows)
    if tensors := found.worst(worst):
        _print_named(
            f"the worst {len(tensors)} of {len(found.tensors)} tensors, by rel_l2",
            ["tensor!", "shape>", *COLUMNS, "W1>"],
            [_tensor(tensor) for tensor in tensors],
        )
    if found.overall.update is not None:
        _show_updates(found)
    console = messages()
    for line in _notes(found):
        console.print(line, style="yellow", soft_wrap=True)
    console.print(LEGEND, style="dim")


def _headlines(found: Diff) -> Iterator[str]:
    for side, checkpoint in (("A", found.a), ("B", found.b)):
        path, count = _visible(checkpoint.path), len(checkpoint.entries)
        yield f"{side}: {path} ({checkpoint.kind}, {count} tensors)"
    same = sum(1 for t in found.tensors if not t.distance.differing)
    word = "all" if same == len(found.tensors) else f"{same}"
    yield f"{len(found.tensors)} pairs of tensors, {word} of them the same"
    if found.cast is not None:
        yield f"{found.cast}"
    elif partly := [t for t in found.tensors if t.cast is not None]:
        yield f"in {len(partly)} tensors {partly[0].cast}"


def _group(group: GroupDiff) -> tuple[str, ...]:
    pooled = "" if group.wasserstein_pooled is None else _short(group.wasserstein_pooled)
    per_tensor = _short(group.wasserstein_per_tensor)
    return (group.name, str(group.tensors), *_metrics(group.distance), pooled, per_tensor)


def _tensor(tensor: TensorDiff) -> tuple[str, ...]:
    shape = "x".join(map(str, tensor.pair.a.shape)) or "scalar"
    return (tensor.pair.name, shape, *_metrics(tensor.distance), _short(tensor.wasserstein))


def _metrics(distance: WeightDistance) -> tuple[str, ...]:
    away = 1 - distance.cosine
    found = map(_short, (distance.max_diff, distance.rel_l2, away))
    broken = distance.nonfinite_a or distance.nonfinite_b
    between = math.isnan(distance.ulp_mean) and not broken  # two dtypes, or nothing
    flips = f"{100 * distance.sign_flips / distance.n:.2g}" if distance.n else ""
    return (*found, "" if between else _short(distance.ulp_mean), flips)


def _short(value: float) -> str:
    return "nan" if math.isnan(value) else f"{value:.2g}" if value else "0"


def _number(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _show_updates(found: Diff) -> None:
    """The ways from the base, for each layer."""
    rows = [
        (group.name, *_way(group.update))
        for group in [*found.groups[:MOST_GROUPS], found.overall, *found.optimizer]
        if group.update is not None
    ]
    base = "" if found.base is None else printable(found.base.path)
    _print_named(
        "updates from the base C", ["layer!", "|A-C|>", "|B-C|>", "cosine>", "|B-A|/|A-C|>"], rows
    )
    messages().print(f"C: {base}", style="dim", soft_wrap=True)


def _way(update: WeightDistance) -> tuple[str, ...]:
    lengths = math.sqrt(update.aa), math.sqrt(update.bb)
    return (*map(_short, lengths), f"{update.cosine:.4f}", _short(update.rel_l2))


def _notes(found: Diff) -> Iterator[str]:
    pairing = found.pairing
    yield from _listed("missing in B", pairing.only_a)
    yield from _listed("missing in A", pairing.only_b)
    reshaped = [f"{n} {list(a)} to {list(b)}" for n, (a, b) in pairing.reshaped.items()]
    yield from _listed("of another shape", reshaped)
    yield from _listed("on one side alone, tied", [f"{n} to {t}" for n, t in pairing.tied.items()])
    for side, checkpoint in (("A", found.a), ("B", found.b)):
        left = [f"{name} ({why})" for name, why in checkpoint.left_out.items()]
        yield from _listed(f"left out of {side}", left)
    broken = [
        t.pair.name for t in found.tensors if t.distance.nonfinite_a or t.distance.nonfinite_b
    ]
    yield from _listed("not finite", broken)
    yield from map(printable, found.notes)


def _listed(what: str, names: Sequence[str]) -> Iterator[str]:
    if names:
        shown = ", ".join(printable(name, 80) for name in names[:MOST_NAMES])
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        yield f"{what}: {shown}{more}"


def show_series(found: Sequence[Diff], against: str) -> None:
    """Print a line for each checkpoint after the first."""
    rows = [(one.b.path, *_step(one)) for one in found]
    title = f"each against the {against} ({_visible(found[0].a.path)})"
    _print_named(title, ["checkpoint!", *COLUMNS, *POOLED], rows)
    console = messages()
    for line in _first(line for one in found for line in _notes(one)):
        console.print(line, style="yellow", soft_wrap=True)
    console.print(LEGEND, style="dim")


def _step(one: Diff) -> tuple[str, ...]:
    return _group(one.overall)[2:]


def _first(lines: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(lines))
