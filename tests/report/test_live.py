"""Figures of what a monitor saw."""

import math

from roundoff.report import write_report
from roundoff.report.live import live_figures

from .runs import write_run


def reading(step, head, rmse, of="attention", name="layers.0"):
    return {"step": step, "of": of, "name": name, "head": head, "rmse": rmse, "ratio": 1.0}


def line(readings, **more):
    return {"schema": 1, "status": "ok", "live": readings, **more}


def test_a_line_is_a_kernel_where_kernels_were_watched():
    rows = [
        line([reading(s, h, (s + 1) * (h + 1) * 1e-8) for s in (0, 5) for h in (0, 1, 2)],
             watched={"attention": kernel})
        for kernel in ("torch-math", "fa2")
    ]  # fmt: skip
    (figure,) = live_figures(rows)
    assert [view.label for view in figure.views] == ["rmse", "ratio"]
    filled = list(figure.filled(figure.views[0]))
    assert [(r["candidate"], r["x"]) for r in filled] == [
        ("fa2", 0), ("fa2", 5), ("torch-math", 0), ("torch-math", 5),
    ]  # fmt: skip
    assert [filled[1][k] for k in ("low", "value", "high")] == [6e-8, 1.2e-7, 1.8e-7]


def test_the_page_of_a_monitors_run(tmp_path):
    pooled = {"of": "gradients", "name": "*", "pooled": True}
    norms = [{"step": s, **pooled, "norm": 1.0 + s} for s in range(4)]
    rows = [line([reading(s, 0, math.nan if s == 2 else 1e-8), norms[s]]) for s in range(4)]
    run = write_run(tmp_path / "run", rows, manifest={"command": "monitor"})
    page, *pictures = write_report(run)
    text = page.read_text("utf-8")
    assert "A training, watched" in text
    assert "sampled steps" in text
    assert {p.name for p in pictures} >= {"live-attention.png", "live-tensors.png"}
    table = run.sql("select max(rmse) as worst, count(*) as n from live where \"of\"='attention'")
    assert math.isnan(table["worst"][0])
    assert table["n"][0] == 4
