"""A study's verdicts as they are shown, each with a figure drawn from its evidence rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from roundoff.report.charts import dot_chart
from roundoff.report.figure import Figure, View, linear_scale, log_scale, order, show, show_value
from roundoff.report.rows import number, plain
from roundoff.report.tables import Table, table_of
from roundoff.store import Run

__all__ = ["OUTCOMES", "Shown", "read_claims"]

OUTCOMES = {
    "holds": "yes", "holds only if": "partly", "does not hold": "no", "cannot tell": "unknown",
}  # fmt: skip
"""Every outcome and the style of its badge."""
MOST_LABELS = 30
MOST_PANELS = 8


@dataclass(frozen=True, slots=True)
class Shown:
    """One verdict on the page."""

    anchor: str
    claim: str
    text: str
    claimed: str
    outcome: str
    style: str
    measured: str
    condition: str
    evidence: Table | None
    figure: Figure | None


def read_claims(run: Run) -> tuple[dict[str, Any], list[Shown]]:
    """What stands beside the claims (source, command), and the claims, if there are any."""
    if not (run.path / "claims.json").exists():
        return {}, []
    document = run.read_document("claims.json")
    claims: object = document.get("claims")
    entries = cast("list[object]", claims) if isinstance(claims, list) else []
    shown = [
        _shown(f"claim-{i}", cast("dict[str, Any]", entry))
        for i, entry in enumerate(entries, start=1)
        if isinstance(entry, dict)
    ]
    return {k: v for k, v in document.items() if k != "claims"}, shown


def _shown(anchor: str, entry: Mapping[str, Any]) -> Shown:
    listed: object = entry.get("evidence")
    rows = cast("list[object]", listed) if isinstance(listed, list) else []
    evidence = [cast("dict[str, Any]", r) for r in rows if isinstance(r, dict)]
    outcome = str(entry.get("outcome", "cannot tell"))
    claim = str(entry.get("claim", anchor))
    return Shown(
        anchor, claim, str(entry.get("text", "")), str(entry.get("claimed", "")), outcome[:24],
        OUTCOMES.get(outcome, "unknown"), str(entry.get("measured", "")),
        str(entry.get("condition") or ""),
        table_of(evidence) if evidence else None, _figure(anchor, claim, evidence),
    )  # fmt: skip


def _figure(anchor: str, claim: str, evidence: Sequence[Mapping[str, Any]]) -> Figure | None:
    """The rows' estimates with their intervals, if they are of that kind."""
    estimate = _estimate_column(evidence)
    if estimate is None:
        return None
    keys = [k for k in _varied(evidence) if k not in (estimate, "low", "high")]
    label, group, panels = _parts(evidence, keys)
    rows = [
        {"label": _word(r, label), "group": _word(r, group),
         "panel": ", ".join(_named(r, p) for p in panels),
         "where": _words(r, [k for k in keys if k not in (label, group, *panels)])}
        for r in evidence
    ]  # fmt: skip
    values = [[_finite(r.get(c)) for c in (estimate, "low", "high")] for r in evidence]
    held = [v[0] for v in values if v[0] is not None]
    is_log = min(held, default=0) > 0 and ("ratio" in estimate or max(held) / min(held) > 30)
    line = 1.0 if is_log else 0.0
    x = (log_scale if is_log else linear_scale)(estimate, [*held, line])
    labels = [show_value(v) for v in order(plain(r[label]) for r in evidence)] if label else [""]
    if len(labels) > MOST_LABELS or not held:
        return None
    tips = {"label": label or "", "group": group or "", "panel": "where", "where": "and",
            "value": estimate, "low": "95 % from", "high": "to"}  # fmt: skip
    groups = [show_value(v) for v in order(plain(r[group]) for r in evidence)] if group else [""]
    spec = dot_chart(x, panels=list(dict.fromkeys(r["panel"] for r in rows)), rows=labels,
                     groups=groups, title=group, line=line,
                     tips={k: t for k, t in tips.items() if t})  # fmt: skip
    caption = (
        f"{claim}: {estimate} of {len(held)} rows with its 95 % interval, "
        f"from {show(min(held))} to {show(max(held))}"
        f"{f'; colour: {group}' if group else ''}."
    )
    return Figure(f"evidence-{anchor}", f"Evidence of {claim}", rows,
                  [View(estimate, spec, ("value", "low", "high"), values, caption)])  # fmt: skip


def _estimate_column(evidence: Sequence[Mapping[str, Any]]) -> str | None:
    """The numeric column before `low` and `high`, by which an estimate has its interval."""
    if not evidence or not {"low", "high"} <= evidence[0].keys():
        return None
    columns = list(evidence[0])
    before = columns[columns.index("low") - 1]
    return before if number(evidence[0][before]) is not None else None


def _varied(evidence: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = [k for k, v in evidence[0].items() if not isinstance(v, bool)]
    return [k for k in columns if len({plain(r.get(k)) for r in evidence}) > 1]


def _parts(
    evidence: Sequence[Mapping[str, Any]], keys: Sequence[str]
) -> tuple[str | None, str | None, list[str]]:
    """Which columns become rows of the chart, colours, and panels (eight at most)."""
    counts = {k: len({plain(r.get(k)) for r in evidence}) for k in keys}
    texts = [k for k in keys if any(isinstance(r.get(k), str) for r in evidence)] or list(keys)
    label = max(texts, key=lambda k: counts[k], default=None)
    rest = [k for k in keys if k != label]
    group = max((k for k in rest if counts[k] <= 7), key=lambda k: counts[k], default=None)
    panels: list[str] = []
    for key in (k for k in rest if k != group and k in texts):
        if math.prod(counts[k] for k in (*panels, key)) <= MOST_PANELS:
            panels.append(key)
    return label, group, panels


def _words(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    return ", ".join(f"{c} {_word(row, c)}" for c in columns)


def _word(row: Mapping[str, Any], column: str | None) -> str:
    return show_value(plain(row.get(column))) if column else ""


def _named(row: Mapping[str, Any], column: str) -> str:
    """A value that says by itself what it is, or with its column's name."""
    return _word(row, column) if isinstance(row.get(column), str) else _words(row, [column])


def _finite(value: object) -> float | None:
    found = number(value)
    return float(f"{found:.4g}") if found is not None and math.isfinite(found) else None
