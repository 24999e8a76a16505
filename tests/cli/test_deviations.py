"""The table that `roundoff bench` prints: medians over seeds, and how sure the gain is."""

import math
import statistics

import pytest

from roundoff.cli.deviations import deviations, doubtful
from roundoff.cli.terminal import print_table


def row(gain, gain_se, seed):
    outputs = {"out": {"rmse": 1e-3, "gain": gain, "gain_se": gain_se}}
    cell = {"operator": "attention", "candidate": "recipe:fa2", "format": "bf16"}
    cell |= {"params": {"heads": 1}, "seed": seed}
    return {"cell": cell, "outputs": outputs, "floor": {"out": {"rmse": 5e-4}}}


def gain_of(*pairs):
    columns, [line] = deviations([row(*pair, seed) for seed, pair in enumerate(pairs)])
    return line[columns.index("gain ± se>")]


def test_one_seed_keeps_its_own_error():
    assert gain_of((-2e-4, 3e-5)) == "-2.0e-04 ±3e-05"


def test_seeds_are_independent():
    """Also with one head, which has no error of its own."""
    gains = [-3e-4, -1e-4, -2e-4]
    error = statistics.stdev(gains) / math.sqrt(3)
    assert gain_of(*((g, math.nan) for g in gains)) == f"-2.0e-04 ±{error:.0e}"
    assert gain_of(*((g, 1e-9) for g in gains)) == f"-2.0e-04 ±{error:.0e}"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_shown(bad):
    assert gain_of((bad, math.nan), (1e-4, 1e-5)) == f"{bad:+.1e} ±nan"
    assert gain_of((bad, math.nan)) == f"{bad:+.1e} ±nan"


def test_nothing_measured():
    assert gain_of((None, None)) == "-"


def test_one_seed_with_one_head():
    assert gain_of((1e-4, None)) == "+1.0e-04 ±nan"


def test_over_the_floor():
    columns, [line] = deviations([row(0.0, 0.0, 0)])
    assert line[columns.index("x floor>")] == "2"


def test_operators_with_other_parameters_share_a_table():
    other = row(1e-4, 1e-5, 0)
    other["cell"] = {
        "operator": "softmax",
        "candidate": "recipe:online",
        "format": "bf16",
        "params": {"length": 64},
    }
    _, lines = deviations([row(1e-4, 1e-5, 0), other])
    assert [line[0] for line in lines] == [
        "heads 1",
        "  recipe:fa2",
        "length 64",
        "  recipe:online",
    ]


def test_another_result_is_told_from_a_rounded_one():
    good, bad = row(0, 0, 0), row(0, 0, 1)
    good["outputs"]["out"]["rel_l2"] = 0.01
    bad["outputs"]["out"]["rel_l2"] = 1.4
    assert doubtful([good]) == []
    [text] = doubtful([good, bad])
    assert text.startswith("recipe:fa2: relative error 1.4")


def test_what_is_not_finite_is_told():
    good, bad = row(0, 0, 0), row(0, 0, 1)
    bad["outputs"]["out"] |= {"rel_l2": math.nan, "nonfinite_new": 12}
    [text] = doubtful([good, bad, bad])
    assert text == "recipe:fa2: broken: 24 elements are NaN or infinite where golden is finite"


def test_long_names_are_shortened_and_not_folded(capsys):
    places = ["kernel:/a/long/way/to/mine.py:a", "kernel:x/y.py:f", "kernel:z/y.py:f"]
    long = "kernel:" + "m" * 80 + ":f"
    rows = [row(0, 0, 0) for _ in range(4)]
    for one, place in zip(rows, [*places, long], strict=True):
        one["cell"] |= {"candidate": place}
    columns, lines = deviations(rows)
    assert [line[0].strip() for line in lines] == ["kernel:mine.py:a", *places[1:], long]
    print_table("", columns, lines)
    shown = capsys.readouterr().out.split("\n")
    for line in lines:
        assert any(all(cell.strip() in row for cell in line) for row in shown)
