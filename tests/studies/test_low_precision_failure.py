"""The predicates of the low-precision-failure study on rows whose truth is known."""

import random

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from scipy import stats

from roundoff.studies import STUDIES
from roundoff.studies.low_precision_failure.claims import CLAIMS, LEAST
from roundoff.studies.low_precision_failure.plan import CONTROLS, FINE, NARROW, TIED, trained
from roundoff.studies.low_precision_failure.trained import TRAINED

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
               "condition_tied": float(cell.parameters["inputs"] == TIED),
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


@pytest.fixture(scope="module")
def captured(cells, tmp_path_factory):
    """The cells with those of four files, whose content nobody reads here."""
    folder = tmp_path_factory.mktemp("inputs")
    paths = [folder / f"{i}.safetensors" for i in range(4)]
    for i, path in enumerate(paths):
        save_file({name: torch.full((1, 1, 4, 2), float(i)) for name in "qkv"}, path)
    return cells + trained(paths).cells()


def on_files(stretched, safe=0.0):
    """Rows as measured, and on files a stretch of some (candidate, tile); others are straight."""

    def model(name, parameters):
        if not parameters["inputs"].startswith("file:"):
            return measured(name, parameters)
        return safe if name.endswith("tie-safe") else stretched(name, parameters["tile"])

    return model


def narrow(name):
    return f"recipe:{name}" in NARROW


FAILS = {
    "everywhere": lambda name, tile: STRETCH * narrow(name),
    "small tiles": lambda name, tile: STRETCH * (narrow(name) and tile == FINE),
    "one state": lambda name, tile: STRETCH * (name == "failure-bf16"),
    "nowhere": lambda name, tile: 0.0,
    "the other way": lambda name, tile: -STRETCH * narrow(name),
    "what is not narrow": lambda name, tile: STRETCH * (name in ("fa2", "torch-math")),
}


@pytest.mark.parametrize(
    ("fails", "outcome", "condition"),
    [
        ("everywhere", "holds", ""),
        ("small tiles", "holds only if", "everything in bf16 (tiles of 16 keys); ties are why"),
        (
            "one state",
            "holds only if",
            "is l and O in bf16 (tiles of 16 keys and tiles of its own)",
        ),
        ("nowhere", "does not hold", ""),
        ("the other way", "does not hold", ""),
        ("what is not narrow", "does not hold", ""),
    ],
)
def test_on_files(captured, fails, outcome, condition):
    verdict = TRAINED.verdict(rows(captured, on_files(FAILS[fails])))
    assert verdict.outcome == outcome
    assert condition in verdict.condition
    assert "rows with a tied maximum 0 %, constructed 100 %" in verdict.measured


def test_a_stretch_that_the_tie_safe_maximum_leaves_is_not_of_ties(captured):
    table = rows(captured, on_files(FAILS["small tiles"], safe=STRETCH))
    assert "ties are not why" in TRAINED.verdict(table).condition


def test_files_change_no_other_claim(cells, captured):
    found = STUDY.judge(rows(captured, on_files(FAILS["everywhere"])), files=True)
    assert {v.claim: v.outcome for v in found if v.claim != "TRAINED"} == outcomes(cells, measured)
    assert found[-1].claim == "TRAINED"


def test_a_batch_that_was_not_measured_is_told(cells, captured):
    assert TRAINED.verdict(rows(cells, measured)).outcome == "cannot tell"
    lost = rows(captured, on_files(FAILS["nowhere"]))
    last = lost["inputs"] == lost["inputs"].iloc[-1]
    lost.loc[last & (lost["candidate"] == "recipe:fa2"), "out_gain"] = float("nan")
    assert TRAINED.verdict(lost).outcome == "cannot tell"


def test_batches_are_the_units(captured):
    """Four batches that differ: the interval is Student's over four."""
    gains = [1e-3, 2e-3, 3e-3, 4e-3]
    table = rows(captured, on_files(FAILS["nowhere"]))
    mine = table["inputs"].str.startswith("file:") & table["tile"].isna()
    mine &= table["candidate"] == "recipe:fa2-bf16-output"
    table.loc[mine, "out_gain"] = gains
    (evidence,) = (
        line for line in TRAINED.verdict(table).evidence
        if line["candidate"] == "recipe:fa2-bf16-output" and line["inputs"] == "trained"
        and line["tile"] != FINE
    )  # fmt: skip
    expected = stats.t.interval(0.95, 3, 2.5e-3, stats.sem(gains))
    assert (evidence["low"], evidence["high"]) == pytest.approx(expected)
    assert evidence["batches"] == 4
