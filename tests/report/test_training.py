"""Training as the report reads it: experiments, estimates, maps, tables, pictures."""

import io
import math
import struct
import zlib

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from roundoff.errors import UsageError
from roundoff.report.curves import distance_figures, unit_figures
from roundoff.report.drawings import grey_png, made_of
from roundoff.report.layers import MOST_TENSORS, layer_figures, short_tensors
from roundoff.report.losses import MOST_POINTS, loss_figures
from roundoff.report.rows import samples_of
from roundoff.report.trained import trained_of
from roundoff.report.training_tables import (
    direct_table,
    distance_table,
    tensor_table,
    unit_table,
)

from .runs import sweep
from .trainings import STEPS, TENSORS, distance, repeats, training


def only(lines):
    (found,) = trained_of(lines)
    return found


def view_of(figures, label):
    (figure,) = figures
    return figure, next(v for v in figure.views if v.label.startswith(label))


def row_of(width):
    return st.lists(st.integers(0, 255), min_size=width, max_size=width)


def column(table, name):
    at = table.columns.index(name)
    return [row[at] for row in table.rows]


class TestExperiments:
    def test_bench_and_training_leave_each_others_lines_alone(self):
        bench = sweep(seeds=1)
        assert trained_of(bench) == []
        assert samples_of(repeats()) == []
        assert len(samples_of(bench + repeats())) == len(samples_of(bench))

    def test_what_differs_in_more_than_the_repeat_is_another_experiment(self):
        lines = repeats(2) + repeats(3, experiment={"format": "bf16"})
        assert [t.repeats for t in trained_of(lines)] == [2, 3]

    def test_more_repeats_and_other_candidates_join_the_experiment(self):
        more = training(1, candidates=("slow",), experiment={"repeats": 9})
        found = only([training(0), more])
        assert found.arms == ["fast", "bf16", "slow", "ulp", "rerun", "seed"]

    def test_a_repeat_stored_twice_counts_once(self):
        assert only(repeats(2) + repeats(2)).repeats == 2

    @pytest.mark.parametrize("part", ["log", "distances", "direct"])
    def test_lines_that_lack_a_part_are_left_out(self, part):
        broken = {k: v for k, v in training(0).items() if k != part}
        assert trained_of([broken, {**training(1), "status": "failed"}]) == []


class TestCurves:
    def test_distances_are_geometric_means_with_students_interval_on_logarithms(self):
        figure, view = view_of(distance_figures(only(repeats(4)), "t"), "rel_l2")
        for row, (value, low, high) in zip(figure.rows, view.values, strict=True):
            held = [distance(row["candidate"], row["x"], r) for r in range(4)]
            if row["candidate"] == "rerun":
                assert (value, low, high) == ("exactly 0", None, None)
                continue
            assert value == pytest.approx(scipy.stats.gmean(held), rel=1e-3)
            logs = np.log(held)
            ends = scipy.stats.t.interval(0.95, 3, logs.mean(), scipy.stats.sem(logs))
            assert [low, high] == pytest.approx(list(np.exp(ends)), rel=1e-3)

    def test_the_cosine_is_shown_as_what_it_lacks(self):
        figure, view = view_of(distance_figures(only(repeats(1)), "t"), "1 - cosine")
        (found,) = (
            v[0] for r, v in zip(figure.rows, view.values, strict=True)
            if (r["candidate"], r["x"]) == ("bf16", 10)
        )  # fmt: skip
        assert found == pytest.approx(distance("bf16", 10, 0) ** 2 / 2, rel=1e-3)

    def test_equal_weights_have_no_angle_whatever_the_rounding(self):
        line = training(0)
        for at in line["distances"]["rerun"]:
            at["cosine"] = 1 - 2**-53
        _, view = view_of(distance_figures(only([line]), "t"), "1 - cosine")
        assert "rerun is exactly 0 at every step" in view.caption

    def test_units_are_ratios_and_an_idle_yardstick_is_a_word(self):
        figure, view = view_of(unit_figures(only(repeats()), "t"), "rel_l2")
        for row, (value, *_) in zip(figure.rows, view.values, strict=True):
            ratio = {"ulp": 1e-8, "seed": 0.7, "bf16": 1e-3}.get(row["candidate"])
            size = {"fast": 2e-5, "bf16": 1e-3}[row["panel"]]
            assert value == (
                pytest.approx(size / ratio, rel=1e-3) if ratio else "rerun is exactly 0"
            )
        assert ("bf16", "bf16") not in {(r["panel"], r["candidate"]) for r in figure.rows}

    def test_the_line_of_no_difference_lies_inside(self):
        _, view = view_of(unit_figures(only(repeats(candidates=("fast",))), "t"), "rel_l2")
        low, high = view.spec["layer"][1]["encoding"]["y"]["scale"]["domain"]
        assert low < 1 < high

    def test_a_ratio_that_is_not_finite_is_told_with_who_and_when(self):
        lines = repeats(far=lambda arm, s, r: math.nan if (arm, s) == ("fast", 20) else s * 1e-3)
        _, view = view_of(unit_figures(only(lines), "t"), "rel_l2")
        assert "No ratio where fast is nan from step 20 on" in view.caption

    def test_losses_are_means_and_as_many_as_a_curve_has_room_for(self):
        steps = 2 * MOST_POINTS + 8
        figure, view = view_of(
            loss_figures(only(repeats(2, experiment={"steps": steps})), "t"), "loss"
        )
        base = [(r["x"], v[0]) for r, v in zip(figure.rows, view.values, strict=True)
                if r["candidate"] == "baseline"]  # fmt: skip
        assert len(base) <= MOST_POINTS
        assert base[-1][0] == steps
        assert base[0] == (3, pytest.approx(np.mean([5, 5 / 2, 5 / 3]), rel=1e-3))

    def test_one_nan_makes_its_part_of_the_curve_a_word(self):
        line = training(0, experiment={"steps": 2 * MOST_POINTS})
        line["log"]["fast"][10]["loss"] = math.nan
        figure, view = view_of(loss_figures(only([line]), "t"), "loss")
        words = [(r["candidate"], r["x"]) for r, v in zip(figure.rows, view.values, strict=True)
                 if v[0] == "nan"]  # fmt: skip
        assert words == [("fast", 12)]
        assert "fast is NaN or infinite at step 12" in view.caption


class TestLayers:
    def test_values_stand_as_they_are_and_rows_in_the_order_of_the_model(self):
        figure, view = view_of(layer_figures(only(repeats(1)), "t"), "rel_l2 after step 20")
        assert list(dict.fromkeys(r["tensor"] for r in figure.rows)) == list(TENSORS)
        for row, (value,) in zip(figure.rows, view.values, strict=True):
            size = distance(row["column"], 20, 0) * (1 + TENSORS.index(row["tensor"]))
            assert value == (pytest.approx(size, rel=1e-2) if size else "0")

    def test_colours_span_the_decades_of_the_values(self):
        _, view = view_of(layer_figures(only(repeats(1)), "t"), "rel_l2 after step 20")
        (colour,) = (c for part in view.spec["layer"] if (c := part["encoding"].get("color"))
                     and "scale" in c)  # fmt: skip
        assert colour["scale"]["domain"] == [-7, 2]

    def test_every_step_has_a_view_of_the_first_metric(self):
        (figure,) = layer_figures(only(repeats(1)), "t")
        labels = [v.label for v in figure.views]
        assert labels[:3] == [f"{m} after step 20" for m in ("rel_l2", "max_diff", "w1")]
        assert labels[3:] == [f"rel_l2 after step {s}" for s in reversed(STEPS[:-1])]

    def test_nan_and_infinity_stand_in_their_boxes(self):
        wrong = {"ulp": math.nan, "seed": math.inf}
        lines = repeats(1, far=lambda arm, s, r: wrong.get(arm, 1e-3))
        figure, view = view_of(layer_figures(only(lines), "t"), "rel_l2")
        found = {r["column"]: v for r, v in zip(figure.rows, view.values, strict=True)}
        assert (found["ulp"], found["seed"]) == (["nan"], ["inf"])
        assert "NaN or infinite: 4 tensors of ulp, 4 tensors of seed." in view.caption

    def test_of_too_many_tensors_those_that_moved_most_are_kept_and_the_rest_counted(self):
        tensors = [f"layer.{i}.weight" for i in range(MOST_TENSORS + 3)]
        figure, view = view_of(layer_figures(only(repeats(1, tensors=tensors)), "t"), "rel_l2")
        assert list(dict.fromkeys(r["tensor"] for r in figure.rows)) == tensors[3:]
        assert "3 tensors that moved less are left out" in view.caption

    @given(st.lists(st.text("ab0.", min_size=1, max_size=60), unique=True))
    def test_short_names_stay_as_many_different_ones(self, names):
        assert len(set(short_tensors(names))) == len(names)

    def test_long_names_lose_what_counts_and_then_their_beginning(self):
        long = [f"net.transformer_blocks.{i}.attention.to_out.0.{n}.weight"
                for i in (0, 1) for n in ("projection", "q" * 30 + str(i))]  # fmt: skip
        found = short_tensors(long)
        assert found[:2] == ["0.attention.to_out.0.projection", "\u2026t.0." + "q" * 30 + "0"]


class TestTables:
    def test_the_gravest_verdict_and_its_reason(self):
        table = direct_table(only(repeats(2)))
        assert column(table, "error of") == ["fast, gradient", "bf16, gradient"]
        assert column(table, "verdict") == ["biased", "biased"]
        assert column(table, "repeats") == ["2 biased", "2 biased"]
        assert column(table, "why")[0] == f"{TENSORS[2]}: because biased"

    def test_of_the_tensors_the_gravest_come_first(self):
        found = column(tensor_table(only(repeats(2))), "verdict")
        assert found[0] == "biased"
        assert found == sorted(found, key=["biased", "persistent", "cannot tell", "noise"].index)

    def test_a_single_repeat_gives_its_gain_with_two_standard_errors(self):
        assert column(direct_table(only(repeats(1))), "gain")[0] == "0.002 [0, 0.004]"

    def test_every_arm_and_step_has_its_distance_nan_too(self):
        lines = repeats(2, far=lambda arm, s, r: math.nan if arm == "ulp" else distance(arm, s, r))
        table = distance_table(only(lines))
        assert len(table.rows) == 5 * len(STEPS)
        told = dict(zip(column(table, "arm"), column(table, "rel_l2"), strict=True))
        assert told["ulp"] == "nan"
        assert told["rerun"] == "0"

    def test_units_stand_at_every_step(self):
        table = unit_table(only(repeats(2)))
        assert table.columns[1:] == [f"step {s}" for s in STEPS]
        assert table.rows[0][:2] == ["fast in ulp", "2e+03 [2e+03, 2e+03]"]


class TestDrawings:
    @given(st.integers(1, 5).flatmap(lambda n: st.lists(row_of(n), min_size=1, max_size=5)))
    def test_another_reader_sees_the_same_picture(self, image):
        pillow = pytest.importorskip("PIL.Image")
        found = pillow.open(io.BytesIO(grey_png(image)))
        assert found.mode == "L"
        assert np.asarray(found).tolist() == image

    def test_checksums_are_right(self):
        data = grey_png([[0, 255], [7, 8]])
        at = 8
        while at < len(data):
            (length,) = struct.unpack(">I", data[at : at + 4])
            body = data[at + 4 : at + 8 + length]
            assert struct.unpack(">I", data[at + 8 + length :][:4]) == (zlib.crc32(body),)
            at += 12 + length

    @pytest.mark.parametrize("image", [[], [[]], [[1], [1, 2]], [[256]], [[-1]], [["x"]], 5, [5]])
    def test_what_is_no_picture_is_refused_and_told(self, image):
        with pytest.raises(UsageError, match="no picture"):
            grey_png(image)
        assert "no picture" in made_of({"images": [image], "captions": []}).problem

    @pytest.mark.parametrize("sample", [None, {}, "x", {"images": 3}, {"text": ""}])
    def test_nothing_is_nothing(self, sample):
        found = made_of(sample)
        assert [found.drawings, found.text, found.problem] in ([(), "", ""], [[], "", ""])
