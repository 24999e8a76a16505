"""The parameters of cells and the text of options, for every operator."""

import contextlib
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roundoff.errors import UnknownNameError, UsageError
from roundoff.formats import FORMATS
from roundoff.operators import OPERATORS, parsing
from roundoff.operators.protocol import Parameter, normalise, parse_axis

N = Parameter("seq_len", 1, "", parsing.positive)
X = Parameter("scale", 1.0, "", parsing.number)
TEXT = Parameter("inputs", "", "", str)


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_a_comma_list_is_its_values(a, b):
    assert parse_axis(N, f"{a},{b}") == list(dict.fromkeys([a, b]))


@given(st.integers(1, 1000), st.integers(1, 5000), st.integers(1, 99))
def test_an_arithmetic_range_is_pythons(start, length, step):
    assert parse_axis(N, f"{start}:{start + length}:+{step}") == list(
        range(start, start + length + 1, step)
    )


@given(st.integers(1, 100), st.integers(2, 5), st.integers(1, 10))
def test_a_geometric_range_reaches_its_end(start, factor, steps):
    stop = start * factor**steps
    values = parse_axis(N, f"{start}:{stop}:x{factor}")
    assert values == [start * factor**i for i in range(steps + 1)]


def test_fractions_reach_their_end_too():
    assert parse_axis(X, "0.1:0.5:+0.1") == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert parse_axis(X, "-1:1:+1") == [-1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    "text",
    [
        "8:4:x2",
        "4:8:x1",
        "0:8:x2",
        "4:8:+0",
        "1:2:+-1",
        "1:inf:x2",
        "1:nan:+1",
        "-inf:2:+1",
        "1:8:xx",
    ],
)
def test_ranges_that_never_end_are_refused(text):
    with pytest.raises(UsageError):
        parse_axis(X, text)


def test_a_range_of_millions_is_refused():
    with pytest.raises(UsageError, match="larger step"):
        parse_axis(N, "1:100000000:+1")


def test_paths_and_windows_are_no_ranges():
    assert parse_axis(TEXT, "file:/a/b:x2,window:64") == ["file:/a/b:x2", "window:64"]


@given(st.text(max_size=12))
def test_any_text_is_parsed_or_refused_by_name(text):
    for parse in (parsing.positive, parsing.number):
        with contextlib.suppress(ValueError):
            assert math.isfinite(parse(text))


def test_normalise_names_the_option():
    parameters = OPERATORS["attention"].parameters
    with pytest.raises(UsageError, match=r"--kv-len 0: expected a whole number of at least 1"):
        normalise(parameters, {"kv_len": 0})
    with pytest.raises(UnknownNameError, match="did you mean 'seq_len'"):
        normalise(parameters, {"seqlen": 3})
    assert normalise(parameters, {"scale": 1})["scale"] == 1.0
    assert normalise(parameters, {"kv_len": None})["kv_len"] is None


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_says_what_it_is(name):
    operator = OPERATORS[name]
    assert operator.name == name
    assert operator.doc
    assert operator.cluster_dims >= 1
    assert all(p.name == n and p.doc for n, p in operator.parameters.items())
    assert all(operator.distributions.values())
    assert all(r.name == n and 0 < len(r.doc) <= 100 for n, r in operator.recipes.items())
    assert operator.cost(normalise(operator.parameters, {})) > 0
    assert operator.content(normalise(operator.parameters, {})) == {}


@pytest.mark.parametrize("name", OPERATORS)
def test_a_default_survives_its_own_parser(name):
    for parameter in OPERATORS[name].parameters.values():
        if parameter.default is not None:
            assert parameter.parse(str(parameter.default)) == parameter.default


def draw_small(operator, format):
    small = {"length": 12, "rows": 3} if operator.name == "softmax" else {"seq_len": 12, "heads": 2}
    return operator.draw(normalise(operator.parameters, small), FORMATS[format], 0)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("format", ["bf16", "fp32", "fp64", "e4m3fn"])
def test_a_problem_has_the_promised_tensors(name, format):
    operator = OPERATORS[name]
    problem = draw_small(operator, format)
    assert set(problem.inputs) <= set(operator.inputs)
    golden, condition = operator.golden(problem)
    outputs, probes = operator.run(next(iter(operator.recipes.values())), problem)
    assert list(golden) == list(outputs) == list(operator.outputs)[: len(golden)]
    assert all(golden[n].shape == outputs[n].shape for n in golden)
    assert all(isinstance(v, float) for v in (*condition.values(), *probes.values()))
    fewer, high, low = operator.precise(problem)
    some = operator.take_rows(golden, fewer)
    for n in golden:
        assert (some[n] - high[n] - low[n]).abs().max() < 1e-12


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", OPERATORS)
def test_golden_and_precise_stay_on_the_device_of_the_inputs(name):
    operator = OPERATORS[name]
    here = draw_small(operator, "fp64")
    there = replace(here, inputs={n: x.cuda() for n, x in here.inputs.items()})
    fewer, high, low = operator.precise(there)
    some = operator.take_rows(operator.golden(there)[0], fewer)
    _, exact, rest = operator.precise(here)
    for n in high:
        assert {x[n].device.type for x in (some, high, low)} == {"cuda"}
        assert (some[n] - high[n] - low[n]).abs().max() < 1e-12
        assert torch.equal(high[n].cpu(), exact[n])
        assert torch.equal(low[n].cpu(), rest[n])


def test_names_can_be_listed_without_torch():
    code = (
        "import sys; from roundoff.operators import OPERATORS; list(OPERATORS);"
        "import roundoff.operators.attention.parameters, roundoff.operators.attention.catalogue;"
        "import roundoff.operators.protocol, roundoff.operators.softmax.catalogue;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
