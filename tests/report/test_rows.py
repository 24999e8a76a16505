"""From lines to points: grouping, axes, estimates, names and scales."""

import math

import pytest

from roundoff.report.figure import Names, linear_scale, log_scale, order, show_value, symlog_scale
from roundoff.report.lines import line_figures
from roundoff.report.rows import estimate, numeric_axes, plain, points_of, samples_of, varied_axes
from roundoff.report.views import sections

from .runs import cell, line, metrics, sweep


def samples(**axes):
    return samples_of(line(cell("recipe:a", s, axes), {"o": metrics(1e-4)}) for s in range(3))


def names_of(found):
    return Names(s.candidate for s in found)


class TestPoints:
    def test_seeds_of_one_place_are_one_point(self):
        points = points_of(samples(n=1) + samples(n=2))
        assert [(p.place["n"], len(p.samples)) for p in points] == [(1, 3), (2, 3)]

    def test_a_seed_measured_against_two_baselines_counts_once(self):
        rows = [
            line(cell("recipe:a", 0, {}, baseline=b), {"o": metrics(1e-4)}) for b in ("k:x", "k:y")
        ]
        assert [len(p.samples) for p in points_of(samples_of(rows))] == [1]
        assert len(points_of(samples_of(rows), with_baseline=True)) == 2

    def test_failed_and_bare_lines_are_no_samples(self):
        bad = [line(cell("a", 0, {}), status="failed"), line(cell("a", 0, {})), {"status": "ok"}]
        assert samples_of(bad) == []

    def test_a_parameter_with_a_cells_name_keeps_apart(self):
        place = samples(format="x")[0].place
        assert (place["format"], place["params.format"]) == ("bf16", "x")

    @pytest.mark.parametrize("value", [[1, 2], {"a": 1}, math.nan])
    def test_values_that_are_no_scalars_can_be_compared(self, value):
        assert plain(value) == plain(value)
        assert isinstance(plain(value), str)


class TestAxes:
    def test_numbers_and_none_make_a_numeric_axis(self):
        held = samples(n=1, t=None) + samples(n=2, t=4)
        assert varied_axes(held) == ["n", "t"]
        assert numeric_axes(held) == {"n": [1, 2], "t": [4]}

    def test_words_and_truths_make_none(self):
        assert numeric_axes(samples(w="a", b=True) + samples(w="b", b=False)) == {}

    def test_order_is_by_size_then_by_sight(self):
        assert order([None, 16, "b", 4, "a", 16]) == [4, 16, "b", "a", None]


class TestEstimates:
    def test_geometric_mean_or_mean(self):
        assert estimate([1.0, 4.0], signed=False).estimate == pytest.approx(2.0)
        assert estimate([-1.0, 3.0], signed=True).estimate == 1.0

    def test_a_zero_leaves_the_median(self):
        found = estimate([0.0, 1.0, 3.0], signed=False)
        assert found.estimate == 1.0
        assert math.isnan(found.low)

    @pytest.mark.parametrize("signed", [True, False])
    def test_a_nan_is_not_lost(self, signed):
        assert math.isnan(estimate([1.0, math.nan], signed=signed).estimate)
        assert math.isnan(estimate([], signed=signed).estimate)


class TestFigures:
    def test_an_axis_of_three_values_has_a_figure_and_one_of_two_has_none(self):
        found = samples_of(sweep())
        assert [f.title for f in line_figures(found, names_of(found))] == [
            "Error against seq_len", "Error against tile",
        ]  # fmt: skip
        short = samples_of(sweep(lengths=[64, 128], candidates=["kernel:fast"]))
        assert line_figures(short, names_of(short)) == []

    def test_who_lacks_the_axis_is_drawn_level_in_every_panel(self):
        found = samples_of(sweep())
        tile = line_figures(found, names_of(found))[1]
        rows = [r for r in tile.rows if r["candidate"] == "plain"]
        assert {r["panel"] for r in rows} == {r["panel"] for r in tile.rows}
        assert {r["x"] for r in rows} == {16, 32, 64}

    def test_the_caption_says_how_far_the_line_moves(self):
        rows = sweep(candidates=["kernel:fast"], rmse=lambda _, n, seed: n * 1e-6)
        found = samples_of(rows)
        caption = line_figures(found, names_of(found))[0].views[0].caption
        assert "From seq_len 64 to 256 it changes by a factor between 4 (" in caption

    def test_names_are_short_unless_shared(self):
        names = names_of(samples_of(sweep()))
        shared = {"recipe:tiled": "tiled", "kernel:fast": "kernel:fast", "kernel:none": "none"}
        assert {name: names[name] for name in shared} == shared


class TestScales:
    @pytest.mark.parametrize("values", [[1e-16, 1.0], [1e-4, 1.2e-4], [3.0], [], [5e-324, 1e308]])
    def test_marks_lie_inside(self, values):
        scale = log_scale("t", values)
        assert all(scale.domain[0] <= t <= scale.domain[1] for t in scale.ticks)
        assert len(scale.ticks) <= 9
        assert all(scale.domain[0] <= v <= scale.domain[1] for v in values)

    @pytest.mark.parametrize("values", [[], [0.0], [-1.0, 2.0], [math.nan, math.inf]])
    def test_linear_and_symlog_have_room(self, values):
        for scale in (linear_scale("t", values), symlog_scale("t", values)):
            assert scale.domain[0] < scale.domain[1]
            assert all(map(math.isfinite, scale.domain))

    @pytest.mark.parametrize(
        ("value", "text"), [(None, "none"), (4096, "4096"), (0.5, "0.5"), (True, "True")]
    )
    def test_parameters_are_spelled_as_people_write_them(self, value, text):
        assert show_value(value) == text


def test_inputs_from_files_are_other_figures():
    def of(*inputs, formats=("bf16",)):
        return samples_of(
            line(cell("recipe:fa2", 0, {"inputs": i}, format=f), {"out": {"rmse": 1e-3}})
            for i in inputs for f in formats
        )  # fmt: skip

    assert list(sections(of("normal", "file:a", "file:b"))) == ["", "inputs from files"]
    assert list(sections(of("file:a", "file:b"))) == [""]
    both = sections(of("normal", "file:a", formats=("bf16", "fp16")))
    assert list(both) == [
        "format bf16", "format fp16", "format bf16, inputs from files",
        "format fp16, inputs from files",
    ]  # fmt: skip
    assert all(len(part) == 1 for part in both.values())
