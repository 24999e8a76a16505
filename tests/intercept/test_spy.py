"""The spy sees what ran, and nothing notices the spy."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from roundoff.errors import KernelError
from roundoff.intercept.spy import require_event, spy


def test_composite_operators_are_seen():
    x = torch.randn(1, 1, 8, 8)
    with sdpa_kernel(SDPBackend.MATH):
        _, events = spy(lambda: sdpa(x, x, x))
    assert {"aten::scaled_dot_product_attention", "aten::_scaled_dot_product_attention_math",
            "aten::matmul"} <= set(events)  # fmt: skip
    assert events == sorted(set(events))


def test_results_and_random_state_are_the_same():
    x = torch.randn(64, 64)
    torch.manual_seed(0)
    plain = torch.nn.functional.dropout(x @ x)
    after = torch.rand(2)
    torch.manual_seed(0)
    spied, _ = spy(lambda: torch.nn.functional.dropout(x @ x))
    assert torch.equal(plain, spied)
    assert torch.equal(torch.rand(2), after)


def test_nothing_is_left_behind_after_an_error():
    with pytest.raises(ZeroDivisionError):
        spy(lambda: 1 / 0)
    assert "aten::ones" in spy(lambda: torch.ones(2))[1]


def test_threads_do_not_see_each_other():
    def both(name):
        return spy(lambda: [getattr(torch, name)(torch.ones(50, 50)) for _ in range(50)])[1]

    with ThreadPoolExecutor(2) as pool:
        sin, cos = pool.map(both, ["sin", "cos"])
    assert "aten::sin" in sin
    assert "aten::cos" not in sin
    assert "aten::cos" in cos
    assert "aten::sin" not in cos


def test_nothing_is_written_to_the_terminal():
    code = "import torch\nfrom roundoff.intercept.spy import spy\nspy(lambda: torch.ones(2) + 1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.slow
def test_compiled_functions_stay_compiled():
    compiled = torch.compile(lambda x: torch.softmax(x.sin() * 2, -1))
    x = torch.randn(8, 8)
    before = compiled(x)
    _, first = spy(lambda: compiled(x))
    after, second = spy(lambda: compiled(x))
    for events in (first, second):
        assert any(e.startswith("## Call CompiledFxGraph") for e in events)
        assert "aten::sin" not in events
    assert torch.equal(before, after)


class TestRequireEvent:
    def test_an_event_may_go_on_after_a_space(self):
        assert require_event("k", ("a::b",), ["a::b", "a::b 3", "a::bc"]) == ["a::b", "a::b 3"]

    def test_no_expectation_proves_nothing(self):
        assert require_event("k", (), ["a::b"]) == []

    def test_what_was_seen_is_named(self):
        with pytest.raises(KernelError, match="expected a::b, saw x::attention"):
            require_event("k", ("a::b",), ["x::attention", "aten::add"])
