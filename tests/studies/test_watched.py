"""The claim on kernels in training: its predicate, and the lines that it reads."""

import pytest

from roundoff.live.trained import WatchedTraining, watched_line
from roundoff.studies.flash_attention.watched import CLAIMS, WATCHED

(CLAIM,) = CLAIMS


def line(kernel, ratios):
    live = [
        {"step": 5 * i, "rmse": 1e-8 * (h + 1), "ratio": ratio, "dq_ratio": 1.0}
        for i, ratio in enumerate(ratios) for h in range(3)
    ]  # fmt: skip
    return {"watched": {"attention": kernel}, "live": live}


@pytest.mark.parametrize(
    ("ratios", "outcome"),
    [([1.0, 0.9, 1.1], "holds"), ([1.0, 3.0], "does not hold"), ([0.3], "does not hold"),
     ([1.0, float("nan")], "does not hold"), ([], "cannot tell")],
)  # fmt: skip
def test_the_predicate(ratios, outcome):
    verdict = CLAIM.verdict([line("torch-cpu-flash", ratios)])
    assert verdict.outcome == outcome
    if outcome == "holds":
        assert "rmse 2.2e-08 at step 1" in verdict.measured


def test_a_kernel_that_is_its_recipe_to_the_bit():
    found = watched_line(WatchedTraining("text", "torch-math", 5, 4))
    assert {r["step"] for r in found["live"]} == {0, 4}
    assert {(r["name"], r["head"]) for r in found["live"]} == {
        (f"model.layers.{i}.self_attn", h) for i in range(2) for h in range(4)
    }
    verdict = CLAIM.verdict([found])
    assert verdict.outcome == "holds"
    assert "1.00 to 1.00 of its recipe's" in verdict.measured


def test_presets():
    assert [w.attention for w in WATCHED["quick"]()] == ["torch-math", "torch-cpu-flash"]
    assert len({w.id for preset in WATCHED.values() for w in preset()}) == 4
