"""The predicates of the flash-attention study on rows whose truth is known.

The rows are the cells of the real quick plan with errors from a model in place of
measurements, so a claim that looks for a cell that the plan does not have fails here.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pandas as pd
import pytest

from roundoff.records import Cell
from roundoff.studies import STUDIES
from roundoff.studies.flash_attention.claims import CLAIMS

STUDY = STUDIES["flash-attention"]
Model = Callable[[Cell], float]

EPS = {"bf16": 2.0**-7, "fp16": 2.0**-10, "fp32": 2.0**-23, "fp64": 2.0**-52}


@pytest.fixture(scope="module")
def cells() -> list[Cell]:
    return STUDY.plan("quick").cells()


def rows(cells: list[Cell], model: Model) -> pd.DataFrame:
    noise = random.Random(0)
    lines = []
    for cell in cells:
        error = model(cell) * (1 + 0.02 * noise.random())
        lines.append(
            {"status": "ok", "candidate": str(cell.candidate), "baseline": str(cell.baseline),
             "format": cell.format, "seed": cell.seed, "kind": cell.kind}
            | dict(cell.parameters)
            | {"out_rmse": error, "out_rel_l2": error, "out_max_abs_err": 4 * error}
        )  # fmt: skip
    return pd.DataFrame(lines)


def outcomes(cells: list[Cell], model: Model) -> dict[str, str]:
    return {v.claim: v.outcome for v in STUDY.judge(rows(cells, model))}


def tiled(cell: Cell) -> bool:
    return cell.parameters["tile"] is not None


def tiles(cell: Cell) -> float:
    return cell.parameters["seq_len"] / cell.parameters["tile"]


def narrow_state(cell: Cell) -> float:
    """What is measured: an error that grows with the number of tiles where the state is bf16."""
    name = cell.candidate.name
    if cell.baseline.kind == "recipe":
        return EPS[cell.format]
    if name in ("paper-bf16", "fa2-bf16-state", "fa2-bf16-sum", "fa2-bf16-output"):
        return 1e-3 * tiles(cell) ** 0.5
    if name in ("baseline-bf16", "torch-math-reduced", "baseline-fp16"):
        return 1e-3
    if "fp8" in name:
        factor = {"fa3-fp8": 1.0, "fa3-fp8-no-blocks": 1.0}.get(name, 3.0)
        return 1e-2 * (factor if cell.parameters["inputs"] == "outliers" else 1.2 * factor**0.1)
    return 3e-4


def flat(cell: Cell) -> float:
    """Nothing depends on anything but the format."""
    return EPS[cell.format]


def test_the_state_decides(cells: list[Cell]) -> None:
    assert outcomes(cells, narrow_state) == {
        "C1": "holds only if",
        "C2": "holds",
        "C3": "holds only if",
        "C4": "holds only if",
        "C5": "holds",
        "C6": "does not hold",  # the model's noise tells square from oblong tiles
        "FA3-16": "holds only if",
        "FA3-8": "holds",
        "LAW": "holds",
        "CAUSE": "holds",
    }


def test_nothing_depends_on_anything(cells: list[Cell]) -> None:
    found = outcomes(cells, flat)
    assert {c for c, outcome in found.items() if outcome == "holds"} == {"C2", "LAW"}
    assert found["C1"] == found["C3"] == found["C4"] == found["CAUSE"] == "does not hold"
    assert found["FA3-16"] == found["FA3-8"] == "does not hold"


def c1(cells: list[Cell], model: Model):
    return next(v for v in STUDY.judge(rows(cells, model)) if v.claim == "C1")


def test_the_condition_names_the_state_and_from_how_many_tiles_on(cells: list[Cell]) -> None:
    verdict = c1(cells, narrow_state)
    assert "everything in bf16 or its state (m, l, O) in bf16" in verdict.condition
    assert "fp32" not in verdict.condition
    # sqrt(n/tile) * 1e-3 / 3e-4 passes 5 between 2 and 4 tiles, and over 1e-3 at 32.
    assert "from n/tile 4 over fp32 inside" in verdict.measured
    assert "from n/tile 32 over all bf16" in verdict.measured


def test_one_number_of_tiles_alone_is_no_threshold(cells: list[Cell]) -> None:
    def odd(cell: Cell) -> float:
        if cell.candidate.name in ("paper-bf16", "fa2") and tiled(cell) and tiles(cell) == 8:
            return 3e-3
        return 3e-4

    assert c1(cells, odd).outcome == "does not hold"


@pytest.mark.parametrize("lost", ["torch-cpu-flash", "fa2", "fp8-per-tensor", "paper-bf16"])
def test_a_nan_among_the_rows_is_never_dropped(lost: str, cells: list[Cell]) -> None:
    table = rows(cells, narrow_state)
    at = table.index[(table["candidate"].str.endswith(f":{lost}")) & (table["seed"] == 3)]
    table.loc[at, ["out_rmse", "out_rel_l2", "out_max_abs_err"]] = float("nan")
    uses = {
        "torch-cpu-flash": {"C1", "C3", "FA3-16"},
        "fa2": {"C1", "C3", "C4", "FA3-16"},
        "fp8-per-tensor": {"FA3-8"},
        "paper-bf16": {"C1", "C2", "C3", "C4", "C5", "C6", "LAW"},
    }
    found = {v.claim: v.outcome for v in STUDY.judge(table)}
    assert {c for c, outcome in found.items() if outcome == "cannot tell"} >= uses[lost]


def test_skipped_cells_do_not_count(cells: list[Cell]) -> None:
    table = rows(cells, narrow_state)
    flex = table["candidate"] == "kernel:torch-flex"
    table.loc[flex, "status"] = "skipped"
    table.loc[flex, ["out_rmse", "out_rel_l2", "out_max_abs_err"]] = float("nan")
    assert "cannot tell" not in {v.outcome for v in STUDY.judge(table)}


def test_square_tiles_must_agree_in_every_seed(cells: list[Cell]) -> None:
    exact = rows(cells, flat).assign(out_rmse=1.0, out_max_abs_err=2.0)
    claim = next(c for c in CLAIMS if c.id == "C6")
    assert claim.verdict(exact).outcome == "holds"
    other = exact.copy()
    at = other.index[(other["q_tile"] == 384) & (other["tile"] == 384)][0]
    other.loc[at, "out_rmse"] = 1.0000001
    assert claim.verdict(other).outcome == "does not hold"


def test_a_wider_format_that_is_worse_refutes_c2(cells: list[Cell]) -> None:
    def worse(cell: Cell) -> float:
        return 1.0 if cell.format == "fp32" else EPS[cell.format]

    assert outcomes(cells, worse)["C2"] == "does not hold"


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.id)
def test_missing_rows_are_told_and_not_guessed(claim, cells: list[Cell]) -> None:
    verdict = claim.verdict(rows(cells, flat).head(3))
    assert verdict.outcome == "cannot tell"
    assert "missing" in verdict.measured


def test_what_was_not_measured_cannot_be_judged(cells: list[Cell]) -> None:
    nothing = rows(cells, lambda cell: float("nan"))
    assert {v.outcome for v in STUDY.judge(nothing)} == {"cannot tell"}


@pytest.mark.parametrize("name", list(STUDIES))
def test_every_preset_makes_a_plan(name: str) -> None:
    study = STUDIES[name]
    for preset in study.presets:
        cells = study.plan(preset).cells()
        assert len({(str(c.candidate), c.format, c.seed, *c.parameters.values(), str(c.baseline))
                    for c in cells}) == len(cells)  # fmt: skip
        assert {c.seed for c in cells} == set(range(max(c.seed for c in cells) + 1))
