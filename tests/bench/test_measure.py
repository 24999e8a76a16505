"""One cell: what is compared with what, what golden may judge, what a bad kernel costs."""

import math
import sys
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import torch

from roundoff.bench.identity import cell_id
from roundoff.bench.measure import Task, evidence, measure, measure_task, truth
from roundoff.errors import GoldenError
from roundoff.formats import get_format
from roundoff.operators import OPERATORS
from roundoff.records import Measurement
from roundoff.store.json import dumps
from roundoff.subjects import resolve_subject

ATTENTION = OPERATORS["attention"]


def measured(*cells):
    return list(measure([(cell_id(c), c) for c in cells]))


def text(measurement):
    """All of a measurement but its time, with NaN equal to NaN."""
    return dumps(replace(measurement, elapsed=0).to_record())


def draw(cell):
    return ATTENTION.draw(cell.parameters, get_format(cell.format), cell.seed)


class TestOneCell:
    def test_the_baseline_is_itself(self, make_cell):
        [one] = measured(make_cell())
        assert one.status == "ok"
        assert one.outputs["out"]["err_ratio"] == pytest.approx(1)
        assert one.outputs["out"]["mismatch_rate"] == 0
        assert one.evidence["out"]["match"] == 1
        assert one.ran == ("aten::_scaled_dot_product_attention_math",)
        assert one.floor["out"]["rmse"] <= one.outputs["out"]["rmse"]
        assert one.elapsed > 0
        assert one.condition["cancellation"] > 0

    def test_sharing_a_problem_changes_nothing(self, make_cell):
        cells = [
            make_cell(),
            make_cell("kernel:torch-cpu-flash"),
            make_cell("recipe:fa2", given={"tile": 4}),
            make_cell("recipe:paper-bf16"),
        ]
        alone = [measured(c)[0] for c in cells]
        for together in (measured(*cells), measured(*cells[::-1])[::-1]):
            assert [text(m) for m in together] == [text(m) for m in alone]

    def test_a_baseline_keeps_its_own_tile(self, make_cell):
        """Also where the baseline is a recipe that is itself measured at other tiles."""
        tiled = make_cell("recipe:paper-bf16", baseline="recipe:paper-bf16", given={"tile": 3})
        plain = make_cell("recipe:paper-bf16", baseline="recipe:paper-bf16")
        other = make_cell("recipe:fa2", baseline="recipe:paper-bf16", given={"tile": 3})
        a, b, c = measured(tiled, plain, other)
        assert b.outputs["out"]["err_ratio"] == pytest.approx(1)
        assert a.outputs["out"]["mismatch_rate"] > 0
        assert a.outputs["out"]["rmse"] != b.outputs["out"]["rmse"]
        base = c.outputs["out"]["rmse"] / c.outputs["out"]["err_ratio"]
        assert base == pytest.approx(b.outputs["out"]["rmse"])

    def test_sampled_rows_are_rows_of_the_whole(self, make_cell):
        cell = make_cell("kernel:torch-cpu-flash", given={"rows": 5})
        [one] = measured(cell)
        assert one.outputs["out"]["n"] == 2 * 5 * 8
        golden = ATTENTION.golden(draw(cell))[0]
        whole = ATTENTION.golden(draw(make_cell()))[0]
        rows = draw(cell).rows
        torch.testing.assert_close(golden["out"], whole["out"][:, :, rows], rtol=1e-13, atol=1e-15)

    def test_an_unplanned_change_fails_the_cell(self, make_cell):
        [one] = measure([("0" * 16, make_cell())])
        assert one.status == "failed"
        assert "start the command again" in one.error

    def test_what_is_not_taken_is_skipped_and_named(self, make_cell):
        cell = make_cell("kernel:torch-cpu-flash", given={"v_dim": 4})
        [one] = measured(cell)
        assert (one.status, one.error) == (
            "skipped",
            "kernel:torch-cpu-flash does not take v_dim 4 beside head_dim 8 (takes equal ones)",
        )

    def test_a_baseline_that_does_not_take_it(self, make_cell):
        [one] = measured(make_cell("recipe:fa2", format="tf32"))
        assert one.status == "skipped"
        assert one.error.startswith("kernel:torch-math does not take format tf32")

    def test_threads_are_put_back(self, make_cell):
        before = torch.get_num_threads()
        cell = make_cell(threads=before + 1)
        [record] = measure_task(Task(((cell_id(cell), cell),)))
        assert Measurement.from_record(record).status == "ok"
        assert torch.get_num_threads() == before

    def test_timing(self, make_cell):
        [one] = measured(make_cell("kernel:torch-cpu-flash", kind="timing"))
        assert one.status == "ok"
        assert not one.outputs
        assert one.timing["repeats"] >= 5
        assert min(one.timing[n] for n in ("baseline_s", "candidate_s", "ratio")) > 0


class TestBadKernels:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("raises", "raised ValueError: no luck [/today]"),
            ("leaves", "raised SystemExit: 3"),
            ("shape", "returned out of shape (1, 2, 15, 8); expected (1, 2, 16, 8)"),
            ("dtype", "returned out as torch.float64; expected torch.bfloat16"),
        ],
    )
    @pytest.mark.parametrize("rows", [None, 4])
    def test_it_costs_only_itself(self, kernels, make_cell, name, message, rows):
        rows = {"given": {"rows": rows}}
        good = make_cell("recipe:fa2", **rows)
        bad = make_cell(f"{kernels}:{name}", **rows)
        first, failed, last = measured(good, bad, replace(good, candidate=good.baseline))
        assert (first.status, last.status) == ("ok", "ok")
        assert failed.status == "failed"
        assert message in failed.error
        assert "\n" not in failed.error

    def test_nan_is_a_result(self, kernels, make_cell):
        [one] = measured(make_cell(f"{kernels}:nan"))
        assert one.status == "ok"
        assert math.isnan(one.outputs["out"]["rmse"])
        assert one.outputs["out"]["nan_count"] == one.outputs["out"]["n"]

    @pytest.mark.parametrize("format", ["bf16", "fp32"])
    def test_one_that_spoils_its_inputs_and_settings(self, kernels, make_cell, format):
        cells = [
            make_cell(f"{kernels}:spoils", format=format),
            make_cell("recipe:fa2", format=format),
        ]
        spoilt, after = measured(*cells)
        [alone] = measured(cells[1])
        assert spoilt.status == "ok"
        assert text(after) == text(alone)
        assert torch.get_default_dtype() == torch.float32

    def test_a_baseline_that_fails_is_named(self, kernels, make_cell):
        [one] = measured(make_cell("recipe:fa2", baseline=f"kernel:{kernels}:raises"))
        assert one.status == "failed"
        assert "kernels.py:raises' raised ValueError" in one.error


class TestGolden:
    @pytest.mark.parametrize("format", ["bf16", "fp16", "fp32", "tf32", "e4m3fn"])
    def test_narrow_formats_take_the_plain_one(self, make_cell, format, monkeypatch):
        monkeypatch.setattr(type(ATTENTION), "precise", lambda self, problem: 1 / 0)
        found = truth(ATTENTION, draw(make_cell(format=format)))
        assert found.rest is None
        assert found.golden["out"].dtype == torch.float64

    def test_float64_is_judged_below_its_ulp(self, make_cell):
        """Against every sum done here with mpmath: the rmse agrees to many digits."""
        cell = make_cell("kernel:torch-math", format="fp64")
        [one] = measured(cell)
        drawn = draw(cell)
        out = resolve_subject(ATTENTION, cell.candidate).kernel.run(drawn)["out"]
        found = truth(ATTENTION, drawn)
        rows = found.problem.rows
        total = mpmath.mpf(0)
        with mpmath.workdps(60):
            q, k, v = (drawn.inputs[n][0].tolist() for n in "qkv")
            for h in range(2):
                for i in rows.tolist():
                    scale = mpmath.mpf(8**-0.5)
                    p = [mpmath.exp(mpmath.fdot(q[h][i], key) * scale) for key in k[h]]
                    for d in range(8):
                        exact = mpmath.fdot(p, [x[d] for x in v[h]]) / mpmath.fsum(p)
                        total += (mpmath.mpf(out[0, h, i, d].item()) - exact) ** 2
            rmse = float(mpmath.sqrt(total / (2 * len(rows) * 8)))
        assert one.outputs["out"]["rmse"] == pytest.approx(rmse, rel=1e-9)
        assert 0 < one.outputs["out"]["ulp_mean"] < 4
        rest = found.rest["out"]
        assert one.floor["out"]["rmse"] == pytest.approx(rest.square().mean().sqrt().item())
        assert 0 < one.floor["out"]["rmse"] < rmse

    @pytest.mark.parametrize("name", ["attention", "softmax"])
    def test_one_that_is_no_finer_is_refused(self, name, make_cell, monkeypatch):
        operator = OPERATORS[name]
        given = {"seq_len": 8, "heads": 1} if name == "attention" else {"rows": 2, "length": 8}
        defaults = {n: p.default for n, p in operator.parameters.items()}
        drawn = operator.draw(defaults | given, get_format("fp64"), 0)

        def mere_float64(self, problem):
            golden = operator.golden(problem)[0]
            return problem, golden, {n: torch.zeros_like(x) for n, x in golden.items()}

        assert truth(operator, drawn).rest
        monkeypatch.setattr(type(operator), "precise", mere_float64)
        with pytest.raises(GoldenError, match="no finer than float64 and cannot judge fp64"):
            truth(operator, drawn)
        golden = type(operator).golden
        monkeypatch.setattr(
            type(operator), "golden",
            lambda self, p: ({n: x.float() for n, x in golden(self, p)[0].items()}, {}),
        )  # fmt: skip
        with pytest.raises(GoldenError, match=r"is torch\.float32; expected float64"):
            truth(operator, drawn)

    def test_a_missing_library_says_what_to_install(self, make_cell, monkeypatch):
        monkeypatch.setitem(sys.modules, "mpmath", None)
        narrow, wide = measured(make_cell())[0], measured(make_cell(format="fp64"))[0]
        assert (narrow.status, wide.status) == ("ok", "failed")
        assert wide.error.startswith("MissingLibraryError: golden beyond float64 needs mpmath")
        assert "pip install" in wide.error

    def test_a_refusal_is_a_failed_cell(self, make_cell, monkeypatch):
        def nothing(self, problem):
            return problem, {}, {}

        monkeypatch.setattr(type(ATTENTION), "precise", nothing)
        [one] = measured(make_cell(format="fp64"))
        assert one.status == "failed"
        assert one.error.startswith("GoldenError: golden of attention is float64")


class TestEvidence:
    """fp32 values, so that golden rounded once is golden itself."""

    FP32 = get_format("fp32")

    def test_lift(self):
        base = torch.arange(1000.0)
        null, x = base.clone(), base.clone()
        null[0] = -1
        x[:900] = -1
        found = evidence(null.double(), self.FP32, base, x)
        assert found["lift"] == pytest.approx(-899)

    def test_nothing_to_explain(self):
        base = torch.arange(10.0)
        found = evidence(base.double(), self.FP32, base, base + 1)
        assert math.isnan(found["lift"])
        assert math.isnan(found["r2"])

    def test_nothing_explained(self):
        base = torch.arange(1.0, 11.0)
        found = evidence(-base.double(), self.FP32, base, -base)
        assert (found["match"], found["null"], found["lift"]) == (0, 0, 0)

    def test_squared_correlation_of_errors_is_numpys(self):
        golden = torch.randn(200, dtype=torch.float64)
        a = torch.randn(200)
        b = 0.3 * a + 0.1 * torch.randn(200)
        found = evidence(golden, self.FP32, golden + a, golden + b)["r2"]
        assert found == pytest.approx(np.corrcoef(a, b)[0, 1] ** 2, rel=1e-5)
