"""The predicates of the low-precision-failure study on rows whose truth is known."""

import random

import pandas as pd
import pytest

from roundoff.studies import STUDIES
from roundoff.studies.low_precision_failure.claims import CLAIMS, LEAST
from roundoff.studies.low_precision_failure.plan import CONTROLS, NARROW, TIED

STUDY = STUDIES["low-precision-failure"]
STRETCH = 3 * LEAST


@pytest.fixture(scope="module")
def cells():
    return STUDY.plan("quick").cells()


def name_of(cell):
    return cell.candidate.name


def rows(cells, model, gradient=2e-3):
    noise = random.Random(0)
    lines = []
    for cell in cells:
        gain = model(cell.candidate.name, cell.parameters) + 1e-6 * noise.random()
        dq = 1e-4 if name_of(cell).endswith("delta-weights") else gradient
        error = 1e-15 if cell.candidate.name == "tie-safe-fp64" else 2e-3
        lines.append(
            {"status": "ok", "candidate": str(cell.candidate), "baseline": str(cell.baseline),
             "format": cell.format, "seed": cell.seed, "kind": cell.kind}
            | dict(cell.parameters)
            | {"out_gain": gain, "out_sign_bias": gain, "out_rmse": error, "out_rel_l2": error,
               "dq_rmse": dq * (1 + 0.1 * noise.random()), "dq_rel_l2": 70.0}
        )  # fmt: skip
    return pd.DataFrame(lines)


def outcomes(cells, model):
    return {v.claim: v.outcome for v in STUDY.judge(rows(cells, model))}


def measured(name, parameters):
    """What is measured: see the study's report."""
    if parameters["inputs"] == "tied-peak":
        return STRETCH if name == "torch-cpu-flash" else 0.0
    if parameters["inputs"] != TIED or "tie-safe" in name or name.endswith("offset"):
        return 0.0
    if name in ("fa2", "fa3", "fa2-lazy", "torch-math"):
        return -STRETCH
    return 0.5 * LEAST if parameters["tile"] == 16 else STRETCH


def as_the_paper_says(name, parameters):
    narrow = ("failure-bf16", "fa2-bf16-output", "paper-bf16", "failure-bf16-offset",
              "failure-bf16-offset-half")  # fmt: skip
    return STRETCH if parameters["inputs"] == TIED and name in narrow else 0.0


def test_what_is_measured(cells):
    assert outcomes(cells, measured) == {
        "BIAS": "holds",
        "TILE": "holds only if",
        "FP32-O": "holds only if",
        "TIE-SAFE": "holds",
        "OFFSET": "holds only if",
        "DELTA": "holds",
        "KERNELS": "holds only if",
    }


def test_rows_of_the_paper_bear_the_paper_out(cells):
    found = outcomes(cells, as_the_paper_says)
    assert {claim for claim, outcome in found.items() if outcome == "holds"} == {
        "BIAS", "TILE", "FP32-O", "TIE-SAFE", "OFFSET", "DELTA",
    }  # fmt: skip
    assert found["KERNELS"] == "does not hold"


def test_without_any_bias_only_its_absence_holds(cells):
    found = outcomes(cells, lambda name, parameters: 0.0)
    assert {claim for claim, outcome in found.items() if outcome == "holds"} == {
        "FP32-O", "TIE-SAFE", "DELTA",
    }  # fmt: skip


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_that_is_biased_too_refutes_it(cells, control):
    def model(name, parameters):
        return STRETCH if parameters["inputs"] in (TIED, control) else 0.0

    assert outcomes(cells, model)["BIAS"] == "does not hold"


def test_a_rule_that_is_not_exact_does_not_hold(cells):
    table = rows(cells, as_the_paper_says)
    table.loc[table["candidate"] == "recipe:tie-safe-fp64", "out_rel_l2"] = 1e-9
    assert next(v for v in STUDY.judge(table) if v.claim == "TIE-SAFE").outcome == "does not hold"


def test_an_error_of_dq_that_stays_is_not_removed(cells):
    table = rows(cells, measured, gradient=2e-4)
    assert next(v for v in STUDY.judge(table) if v.claim == "DELTA").outcome == "does not hold"


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.id)
def test_missing_rows_are_told_and_not_guessed(cells, claim):
    assert claim.verdict(rows(cells, measured).head(3)).outcome == "cannot tell"
    lost = rows(cells, measured)
    lost.loc[lost["seed"] == 2, ["out_gain", "dq_rmse"]] = float("nan")
    assert claim.verdict(lost).outcome == "cannot tell"


def test_the_plan_has_one_tile_for_all_keys(cells):
    tiles = {c.parameters["tile"] for c in cells if str(c.candidate) in NARROW}
    assert max(t for t in tiles if t) >= 1024
