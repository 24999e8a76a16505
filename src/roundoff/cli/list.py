"""`roundoff list`: what there is, and what runs here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from roundoff.cli.terminal import print_json, print_table

__all__ = ["list_command"]

Kind = Literal[
    "formats", "recipes", "kernels", "inputs", "parameters", "metrics", "probes", "rules",
    "workloads", "arms", "studies", "all",
]  # fmt: skip
Row = dict[str, Any]


def list_command(
    kind: Kind = "all",
    /,
    *,
    operator: str | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Show what there is by name, and what runs on this machine.

    Parameters
    ----------
    kind:
        formats, recipes, kernels, inputs, parameters, metrics, probes, rules, workloads, arms,
        studies, or all.
    operator:
        Only what belongs to this operator.
    json:
        Print one JSON document.
    """
    chosen = list(_LISTS) if kind == "all" else [kind]
    found = {name: _LISTS[name](operator) for name in chosen}
    if json:
        print_json("list", found)
        return
    for name, rows in found.items():
        columns = [c for c in rows[0] if c != "evidence"] if rows else ["nothing"]
        print_table(name, columns, [[row[c] for c in columns] for row in rows])


def _operators(only: str | None) -> list[Any]:
    from roundoff.operators import OPERATORS  # noqa: PLC0415 - imports torch

    return [OPERATORS[only]] if only else list(OPERATORS.values())


def _formats(operator: str | None) -> list[Row]:
    from roundoff.formats import FORMATS  # noqa: PLC0415

    values = {format.name: format for format in FORMATS.values()}
    return [
        {"name": f.name, "bits": f.bits, "exponent": f.exponent_bits, "mantissa": f.mantissa_bits,
         "eps": f"{f.eps:.3g}", "max": f"{f.max:.4g}", "normal": f"{f.smallest_normal:.3g}",
         "smallest": f"{f.smallest_subnormal:.3g}"}
        for f in values.values()
    ]  # fmt: skip


def _recipes(operator: str | None) -> list[Row]:
    return [
        {"name": name, "operator": o.name, "what it is": recipe.doc} | _known(o.name, recipe)
        for o in _operators(operator)
        for name, recipe in o.recipes.items()
    ]


def _known(operator: str, recipe: Any) -> Row:
    """In words what is known of a recipe, and the evidence, which only `--json` spells out."""
    from roundoff.operators.attention.evidence import evidence_of  # noqa: PLC0415

    found = evidence_of(recipe.name) if operator == "attention" else None
    words = {"run": "run", "read": "read, not run", "defined": "defined"}[recipe.known]
    return {
        "known": words if found is None else found.line(),
        "evidence": None if found is None else asdict(found),
    }


def _kernels(operator: str | None) -> list[Row]:
    from roundoff.kernels import KERNELS  # noqa: PLC0415

    return [
        {"name": k.name, "operator": k.operator, "runs here": k.missing() or "yes",
         "what it is": k.doc}
        for k in KERNELS.values()
        if operator in (None, k.operator)
    ]  # fmt: skip


def _inputs(operator: str | None) -> list[Row]:
    return [
        {"name": name, "operator": o.name, "what it is": doc}
        for o in _operators(operator)
        for name, doc in o.distributions.items()
    ]


def _parameters(operator: str | None) -> list[Row]:
    return [
        {"option": f"--{p.name.replace('_', '-')}", "operator": o.name,
         "default": "" if p.default is None else p.default, "what it is": p.doc}
        for o in _operators(operator)
        for p in o.parameters.values()
    ]  # fmt: skip


def _metrics(operator: str | None) -> list[Row]:
    from roundoff.metrics import METRICS  # noqa: PLC0415

    return [
        {"name": m.name, "unit": m.unit, "better": m.better or "", "what it means": m.meaning}
        for m in METRICS.values()
    ]


def _probes(operator: str | None) -> list[Row]:
    from roundoff.formats import FORMATS  # noqa: PLC0415
    from roundoff.metrics.probes import FORMAT_PROBES, PROBES  # noqa: PLC0415
    from roundoff.operators.attention.observed import ROW_PROBES  # noqa: PLC0415

    asking = {name: make(FORMATS["bf16"]) for name, make in FORMAT_PROBES.items()}
    tables = {
        "tensors": PROBES,
        "tensors, with a format": asking,
        "attention": ROW_PROBES,
    }
    return [
        {"name": name, "of": of, "what it is": probe.doc}
        for of, probes in tables.items()
        for name, probe in probes.items()
    ]


def _rules(operator: str | None) -> list[Row]:
    from roundoff.live.rules import RULES  # noqa: PLC0415

    def usual(fields: dict[str, Any]) -> str:
        kept = {name: field.default for name, field in fields.items() if not field.is_required()}
        return ", ".join(f"{name}={value}" for name, value in kept.items())

    return [
        {"name": name, "a spike is": rule.doc, "unless said otherwise": usual(rule.model_fields)}
        for name, rule in RULES.items()
    ]


def _workloads(operator: str | None) -> list[Row]:
    from roundoff.workloads import WORKLOADS  # noqa: PLC0415

    return [
        {"name": w.name, "runs here": w.missing() or "yes", "what it is": w.doc}
        for w in WORKLOADS.values()
    ]


def _arms(operator: str | None) -> list[Row]:
    from roundoff.training.arms import FORMS  # noqa: PLC0415

    return [{"name": name, "differs from the baseline in": how} for name, how in FORMS.items()]


def _studies(operator: str | None) -> list[Row]:
    from roundoff.studies import STUDIES  # noqa: PLC0415

    return [{"name": s.name, "source": s.source, "what it asks": s.doc} for s in STUDIES.values()]


_LISTS: dict[str, Callable[[str | None], list[Row]]] = {
    "formats": _formats,
    "recipes": _recipes,
    "kernels": _kernels,
    "inputs": _inputs,
    "parameters": _parameters,
    "metrics": _metrics,
    "probes": _probes,
    "rules": _rules,
    "workloads": _workloads,
    "arms": _arms,
    "studies": _studies,
}
