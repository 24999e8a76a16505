"""Small runs to report on, made through the store: every kind of trouble has one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from roundoff.store import Run

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`${7*7}{{7*7}}"

Record = dict[str, Any]


def cell(candidate: str, seed: int, params: Record, **rest: Any) -> Record:
    """The cell part of a line."""
    return {
        "operator": rest.get("operator", "attention"),
        "baseline": rest.get("baseline", "kernel:plain"),
        "candidate": candidate,
        "format": rest.get("format", "bf16"),
        "seed": seed,
        "device": "cpu",
        "threads": 1,
        "kind": "accuracy",
        "params": params,
    }


def metrics(rmse: float, *, gain: float = 1e-4) -> Record:
    """The metrics of one output, as far as a report reads them."""
    return {
        "max_abs_err": rmse * 8, "rmse": rmse, "rel_l2": rmse * 14, "ulp_p99": rmse * 5e3,
        "err_ratio": rmse / 1e-4, "max_err_ratio": rmse / 2e-4, "gain": gain, "gain_se": 3e-5,
        "max_abs_err_index": [0, 1], "nan_count": 0, "n": 64,
    }  # fmt: skip


def line(cell: Record, outputs: Record | None = None, **rest: Any) -> Record:
    """One line of a run; without outputs it needs a status."""
    record: Record = {"schema": 1, "status": "ok", "environment": "e0", "elapsed": 0.1}
    record |= {"cell": cell, **rest}
    return record | ({"outputs": outputs} if outputs else {})


def write_run(
    folder: Path,
    records: Iterable[Record],
    *,
    claims: list[Record] | None = None,
    manifest: Record | None = None,
) -> Run:
    """A finished run of these records."""
    run = Run.create_or_open(folder, manifest=manifest or {"command": "roundoff bench"})
    held = {f"c{i}": record for i, record in enumerate(records)}
    with run.writer() as writer:
        for name in writer.claim(list(held)):
            writer.append({**held[name], "id": name})
    run.write_document("environments/e0.json", {"python": "3.11", "libraries": {"torch": "2"}})
    if claims is not None:
        run.write_document(
            "claims.json", {"schema": 1, "command": "roundoff study", "claims": claims}
        )
    return Run.open(folder)


def sweep(
    *,
    candidates: Iterable[str] = ("kernel:plain", "kernel:fast", "recipe:fast", "recipe:tiled"),
    seeds: int = 3,
    lengths: Iterable[int] = (64, 128, 256),
    formats: Iterable[str] = ("bf16",),
    rmse: Callable[[str, int, int], float] = lambda _, n, seed: 1e-4 * (1 + n / 64 + seed / 10),
) -> list[Record]:
    """Candidates over lengths, formats and kinds of inputs; one of them over tiles."""
    return [
        line(
            cell(name, seed, {"seq_len": n, "tile": tile, "inputs": inputs}, format=format),
            {"out": metrics(rmse(name, n, seed)), "lse": metrics(rmse(name, n, seed) / 3)},
            floor={"out": {"rmse": 1e-5}},
            evidence={"out": {"match": 0.9, "null": 0.5, "lift": 0.8}},
        )
        for name in candidates
        for n in lengths
        for tile in ((16, 32, 64) if name == "recipe:tiled" else (None,))
        for inputs in ("normal", "outliers")
        for format in formats
        for seed in range(seeds)
    ]


def study(folder: Path) -> Run:
    """A run with verdicts of every kind and evidence of several shapes."""
    ratios = [
        {"candidate": c, "metric": m, "seq_len": n,
         "ratio": r * n / 64, "low": r * n / 80, "high": r * n / 50}
        for c, r in (("recipe:tiled", 3.0), ("kernel:fast", 1.0))
        for m in ("rmse", "max error")
        for n in (64, 128)
    ]  # fmt: skip
    slopes = [{"candidate": "a", "slope": -0.5, "low": -0.6, "high": -0.4, "holds": True}] * 2
    outcomes = ("holds", "holds only if", "does not hold", "cannot tell")
    evidence: tuple[list[Record], ...] = (ratios, slopes, [{"word": "no estimate"}], [])
    claims = [
        {"claim": f"C{i}", "text": f"statement {i}", "claimed": "10x", "outcome": outcome,
         "measured": "9x [8, 10]", "condition": "tile 16" if i == 1 else "", "evidence": rows}
        for i, (outcome, rows) in enumerate(zip(outcomes, evidence, strict=True))
    ]  # fmt: skip
    return write_run(
        folder, sweep(formats=("bf16", "fp16")), claims=claims,
        manifest={"study": "small", "preset": "quick"},
    )  # fmt: skip


def bench(folder: Path) -> Run:
    """A run without claims."""
    return write_run(folder, sweep(seeds=2))


def one_seed(folder: Path) -> Run:
    """No interval can be had."""
    return write_run(folder, sweep(seeds=1))


def one_cell(folder: Path) -> Run:
    """Nothing varies."""
    return write_run(folder, sweep(seeds=1, lengths=[64], candidates=["kernel:fast"])[:1])


def empty(folder: Path) -> Run:
    """No line at all."""
    return write_run(folder, [])


def only_failures(folder: Path) -> Run:
    """Cells that failed or were skipped, and nothing else."""
    bad = cell("kernel:fast", 0, {"seq_len": 64})
    return write_run(folder, [
        line(bad, status="failed", error="CellError: it broke"),
        line(bad, status="skipped", error="needs a CUDA device"),
        line(bad, status="failed"),
    ])  # fmt: skip


def strange_numbers(folder: Path) -> Run:
    """NaN, infinities, zeros and missing metrics, in some seeds or in all."""
    values = {64: math.nan, 128: math.inf, 256: 0.0}

    def rmse(name: str, n: int, seed: int) -> float:
        return values[n] if seed == 0 or name == "kernel:fast" else 1e-4

    rows = sweep(rmse=rmse)
    rows.append(line(cell("recipe:bare", 0, {"seq_len": 64}), {"out": {"rmse": 1e-4}}))
    rows.append(line(cell("recipe:none", 0, {"seq_len": 64}), {"out": {"err_ratio": None}}))
    return write_run(folder, rows)


def all_nan(folder: Path) -> Run:
    """Not one finite number."""
    rows = sweep(rmse=lambda *_: math.nan)
    for row in rows:
        row["outputs"]["out"]["gain"] = math.nan
    return write_run(folder, rows)


def softmax(folder: Path) -> Run:
    """Another operator, with parameters and an output of other names."""
    return write_run(folder, [
        line(cell(name, seed, {"columns": n, "temperature": 0.5 * t, "log": t == 1},
                  operator="softmax", baseline="kernel:torch-softmax"),
             {"y": metrics(1e-5 * n * (1 + seed))})
        for name in ("recipe:online", "kernel:torch-softmax")
        for n in (100, 150, 200, 250) for t in (0, 1, 2) for seed in range(2)
    ])  # fmt: skip


def hostile(folder: Path) -> Run:
    """Every string is an attack: names, parameters, values, errors, verdicts, manifest."""
    rows = [
        line(cell(f"recipe:{HOSTILE}{i}", s, {"seq_len": n, HOSTILE: HOSTILE, "tile": i * 16},
                  operator=HOSTILE, baseline=f"kernel:{HOSTILE}", format=f"{HOSTILE}{i}"),
             {HOSTILE: metrics(1e-4 * n)})
        for i in (1, 2) for n in (64, 128, 256) for s in (0, 1)
    ]  # fmt: skip
    rows.append(line(cell(HOSTILE, 0, {}), status="failed", error=HOSTILE * 100))
    evidence = [{HOSTILE: f"{HOSTILE}{i}", "ratio": i, "low": i / 2, "high": 2 * i} for i in (1, 2)]
    claim = dict.fromkeys(("claim", "text", "claimed", "outcome", "measured", "condition"), HOSTILE)
    return write_run(
        folder, rows, claims=[{**claim, "evidence": evidence}],
        manifest={"study": HOSTILE, "command": HOSTILE, "preset": HOSTILE},
    )  # fmt: skip


def large(folder: Path) -> Run:
    """More places, candidates and outputs than a page has room for."""
    return write_run(folder, [
        line(cell(f"recipe:r{c}", 0, {"seq_len": 2**n, "tile": 2**t, "heads": h, "inputs": i}),
             {o: metrics(1e-4 * 2**n + h) for o in ("out", "lse", "dq", "dk", "dv")})
        for c in range(16) for n in range(6, 10) for t in range(4, 8) for h in (1, 4)
        for i in ("normal", "outliers")
    ])  # fmt: skip


RUNS = {
    make.__name__: make
    for make in (
        study, bench, one_seed, one_cell, empty, only_failures, strange_numbers, all_nan, softmax,
        hostile, large,
    )
}  # fmt: skip
