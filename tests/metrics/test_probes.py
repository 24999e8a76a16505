"""Probes: held to numpy and ml_dtypes, and states that meet in any order."""

import dataclasses
import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roundoff.errors import UnknownNameError, UsageError
from roundoff.formats import get_format, round_to
from roundoff.metrics import probes as module
from roundoff.metrics.probes import FORMAT_PROBES, PROBES, observe, tensor_probe

FORMATS = {
    "e4m3fn": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2,
    "fp16": np.float16, "bf16": ml_dtypes.bfloat16,
}  # fmt: skip
NUMPY = {
    "norm": lambda x: math.sqrt(np.square(x).sum()),
    "amax": lambda x: np.abs(x).max(initial=0.0),
    "mean": lambda x: x.mean() if x.size else math.nan,
    "zeros": lambda x: (x == 0).mean() if x.size else math.nan,
    "nonfinite": lambda x: (~np.isfinite(x)).sum(),
}
numbers = st.lists(st.floats(width=32) | st.sampled_from([0.0, -0.0, 464.0, 2.0**-10]), max_size=9)


def value(probe, state):
    (found,) = probe.values(state).values()
    return found.item()


def read(probe, x):
    return value(probe, observe([probe], [probe.init()], x)[0])


@pytest.mark.parametrize("name", PROBES)
@given(numbers)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_numpy_says_the_same(name, xs):
    x = np.array(xs, dtype=np.float32).astype(np.float64)
    state = PROBES[name].read(torch.from_numpy(x))
    assert value(PROBES[name], state) == pytest.approx(NUMPY[name](x), nan_ok=True, rel=1e-12)


@pytest.mark.parametrize("format", FORMATS)
@given(numbers)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_format_that_is_not_in_use(format, xs):
    x = np.array([*xs, 1.0], dtype=np.float32)
    cast = x.astype(FORMATS[format]).astype(np.float32)
    lost = ((x != 0) & (cast == 0)).mean()
    beyond = (np.isfinite(x) & ~np.isfinite(cast)).mean()
    assert read(tensor_probe("underflow", format), torch.from_numpy(x)) == lost
    assert read(tensor_probe("overflow", format), torch.from_numpy(x)) == beyond


@pytest.mark.parametrize("name", [*PROBES, *FORMAT_PROBES])
@given(a=numbers, b=numbers, c=numbers)
def test_states_meet_in_any_order(name, a, b, c):
    probe = tensor_probe(name, "e4m3fn")
    a, b, c = (probe.read(torch.tensor([*x, 1.0], dtype=torch.float64)) for x in (a, b, c))
    one, other = probe.merge(probe.merge(a, b), c), probe.merge(c, probe.merge(b, a))
    assert torch.allclose(one, other, rtol=1e-12, equal_nan=True)
    assert probe.update(probe.init(), torch.ones(3)).equal(probe.read(torch.ones(3)))


@pytest.mark.parametrize("name", PROBES)
def test_blocks_are_the_whole(name, monkeypatch):
    x = torch.randn(7, 11, dtype=torch.bfloat16).t()
    whole = read(PROBES[name], x)
    monkeypatch.setitem(module.BLOCK, "cpu", 5)
    assert read(PROBES[name], x) == pytest.approx(whole, rel=1e-12)


def test_small_numbers_keep_their_norm():
    assert read(PROBES["norm"], torch.full((4,), 1e-30)) == pytest.approx(2e-30)


def test_names_that_there_are_not():
    with pytest.raises(UnknownNameError, match="did you mean 'norm'"):
        tensor_probe("nrm")
    with pytest.raises(UsageError, match="asks about a format"):
        tensor_probe("overflow")
    with pytest.raises(UnknownNameError, match="format"):
        tensor_probe("overflow", "fp88")


@pytest.mark.parametrize("format", ["e4m3fn", "e2m1", "e5m2fnuz", "bf16"])
def test_overflow_begins_where_rounding_says(format):
    """Half a spacing beyond the largest number: one to each side of the tie, and the tie itself."""
    f = get_format(format)
    half = math.ldexp(1.0, f.emax - f.mantissa_bits - 1)
    at = torch.tensor([f.max + half], dtype=torch.float64)
    below, above = torch.nextafter(at, 0 * at), torch.nextafter(at, 2 * at)
    for x, over in ((below, False), (above, True), (at, rounds_up(at, f))):
        assert read(tensor_probe("overflow", format), x) == over
        assert read(tensor_probe("overflow", format), -x) == over


def rounds_up(tie, format):
    """Whether the even neighbour of a tie at the top lies beyond, as without a top it would."""
    wider = dataclasses.replace(format, name="wider", exponent_bits=format.exponent_bits + 1)
    wider = dataclasses.replace(wider, bias=format.bias)
    return round_to(tie, wider).item() > format.max
