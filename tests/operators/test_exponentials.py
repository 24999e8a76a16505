"""Exponentials: both twins bit for bit, their stated error, and what torch's kernels compute."""

import itertools
import math
import subprocess
import sys
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch

from roundoff.operators import exponentials
from roundoff.operators.exponentials import EXPONENTIALS, exponential, fma, fma_rows
from roundoff.sites import Exponential

NATURAL = ("exact", "rounded")  # those that float64 is not rounded for
POLYNOMIALS = [name for name in EXPONENTIALS if name not in NATURAL]
READABLE = ("cubic_exp2",)  # those that have no fast twin
TWINS = [("exact", "e"), ("exact", "2")]
TWINS += [(name, "e") for name in POLYNOMIALS if name not in READABLE]
SPECIAL = torch.tensor(
    [0.0, -0.0, math.inf, -math.inf, math.nan, 88.72283, 88.7229, -87.33654, -87.3366, -104.0,
     -104.1, -1e30, 1e30, 1e-45, -1e-45, 3.4e38, -3.4e38]
)  # fmt: skip


def numbers():
    """Every exponent and both signs, and a dense stretch where softmax lives."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31 - 1, (200_000,), generator=generator, dtype=torch.int64)
    anywhere = bits.to(torch.int32).view(torch.float32)
    return torch.cat([anywhere, torch.linspace(-110, 90, 200_001), SPECIAL])


def same_bits(a, b):
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


@pytest.mark.parametrize(("name", "base"), TWINS)
def test_both_twins_give_the_same_bits(name, base):
    pytest.importorskip("numba", reason="the fast twin needs numba")
    from roundoff.operators import _numba

    x, row = numbers(), EXPONENTIALS[name]
    slow = row.compute if base == "e" else row.compute_2
    assert same_bits(slow(x), _numba.TWINS[name, base](x))
    assert set(_numba.TWINS) == set(TWINS)


def test_both_twins_of_fma_give_the_same_bits():
    pytest.importorskip("numba", reason="the fast twin needs numba")
    from roundoff.operators._numba import fma_rows as fast

    a = numbers()[:300_000].view(300, 1000)
    c = torch.randn(300, 1)
    c[:2, 0] = torch.tensor([math.inf, math.nan])
    factor = torch.tensor(0.18033688).item()
    slow = fma(a, factor, c)
    quick = fast(a, factor, c)
    assert torch.equal(slow.isnan(), quick.isnan())
    assert same_bits(slow.nan_to_num(7.0), quick.nan_to_num(7.0))


def test_the_engine_takes_the_fast_twin(monkeypatch):
    pytest.importorskip("numba", reason="the fast twin needs numba")
    x = torch.randn(4, 5)
    fast = exponential(x, Exponential(approximation="exp_u20"))
    asked = []
    monkeypatch.setattr(exponentials, "_twins", lambda: asked.append(1))
    slow = exponential(x, Exponential(approximation="exp_u20"))
    assert asked
    assert same_bits(fast, slow)
    assert same_bits(fma_rows(x, 2.0, x[:, :1]), fma(x, 2.0, x[:, :1]))


@pytest.mark.parametrize("base", ["e", "2"])
@pytest.mark.parametrize("name", EXPONENTIALS)
def test_errors_are_as_stated(name, base):
    x = torch.linspace(-86.6, 88.7, 1_000_001)  # below, exp_u20 gives 0
    x = x if base == "e" or name not in NATURAL else torch.linspace(-126, 127.99, 1_000_001)
    y = exponential(x, Exponential(base, approximation=name)).double()
    exact = x.double().exp() if base == "e" else x.double().exp2()
    allowed = EXPONENTIALS[name].relative_error
    if base == "2" and name not in NATURAL:  # x ln 2 is itself rounded
        allowed += 90 * 2**-24
    assert ((y - exact).abs() / exact).max() <= allowed


@pytest.mark.parametrize(("base", "most", "sure"), [("e", 0.99, 0.85), ("2", 1.23, 0.85)])
def test_ours_is_within_about_an_ulp(base, most, sure):
    """And where it underflows, the result is off by less than one smallest number."""
    x = torch.cat([-20 * torch.rand(10**6, generator=torch.Generator().manual_seed(0)),
                   torch.linspace(-87.3, 88.7, 10**6)])  # fmt: skip
    exact = x.double().exp() if base == "e" else x.double().exp2()
    unit = torch.exp2(exact.log2().floor()) * 2.0**-23
    y = exponential(x, Exponential(base)).double()
    assert ((y - exact).abs() / unit).max() <= most
    assert (y == exact.float()).double().mean() > sure
    x = torch.linspace(-104.5, -87.3, 10**6) if base == "e" else torch.linspace(-151, -126, 10**6)
    exact = x.double().exp() if base == "e" else x.double().exp2()
    y = exponential(x, Exponential(base)).double()
    assert ((y - exact).abs() / 2.0**-149).max() < 0.9
    assert (y.diff() >= 0).all()


def test_float64_against_mpmath():
    x = torch.linspace(-700, 700, 401, dtype=torch.float64)
    for name, base in itertools.product(NATURAL, "e2"):
        y = exponential(x, Exponential(base, approximation=name))
        with mpmath.workdps(40):
            root = mpmath.e if base == "e" else mpmath.mpf(2)
            exact = [root ** mpmath.mpf(value) for value in x.tolist()]
            worst = max(abs(a / b - 1) for a, b in zip(y.tolist(), exact, strict=True))
        assert worst < 2.3e-16


@pytest.mark.parametrize("base", ["e", "2"])
@pytest.mark.parametrize("name", EXPONENTIALS)
def test_special_values(name, base):
    x = torch.tensor([-math.inf, math.inf, math.nan, -1e30, 1e30, 0.0])
    y = exponential(x, Exponential(base, approximation=name))
    assert y[[0, 3]].tolist() == [0.0, 0.0]
    assert y[[1, 4]].tolist() == [math.inf, math.inf]
    assert y[2].isnan()
    assert y[5] == pytest.approx(1.0, rel=1.2e-4)


@pytest.mark.parametrize("name", POLYNOMIALS)
def test_float64_is_rounded_to_float32_for_a_polynomial(name):
    x = torch.linspace(-20, 0, 1000, dtype=torch.float64)
    how = Exponential(approximation=name)
    y = exponential(x, how)
    assert y.dtype == torch.float64
    assert torch.equal(y, exponential(x.float(), how).double())


@pytest.mark.parametrize("columns", [1, 15, 16, 17, 48, 50])
def test_the_tail_is_exact(columns):
    x = -torch.rand(3, columns) * 5
    y = exponential(x, Exponential(approximation="fexp_u20", tail=16))
    whole = columns // 16 * 16
    assert torch.equal(y[:, whole:], exponential(x[:, whole:], Exponential()))
    other = exponential(x, Exponential(approximation="fexp_u20", scalar="rounded", tail=16))
    assert torch.equal(other[:, whole:], x[:, whole:].double().exp().float())
    plain = exponential(x, Exponential(approximation="fexp_u20"))
    assert torch.equal(y[:, :whole], plain[:, :whole])


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="the tail is AVX-512's"
)
@pytest.mark.parametrize(
    ("name", "dtype"), [("fexp_u20", torch.bfloat16), ("exp_u20", torch.float32)]
)
def test_torch_computes_these_bits(name, dtype):
    """CPU flash over two keys with V = (0, 1): l and P can be read off LSE and output.

    Sixteen keys, so that nothing falls to the tail: one at logit 0, fifteen at x. V is 1 for the
    first key only, so O = 1 / (1 + 15 exp(x)).
    """
    logits = -torch.linspace(0.01, 12, 997).to(dtype)
    rows = len(logits)
    q = logits.view(1, 1, rows, 1).expand(1, 1, rows, 8).contiguous() * torch.eye(8)[0].to(dtype)
    k = torch.zeros(1, 1, 16, 8, dtype=dtype)
    k[:, :, 1:, 0] = 1
    v = torch.zeros(1, 1, 16, 8, dtype=dtype)
    v[:, :, 0] = 1
    _, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, False, scale=1.0
    )
    p = exponential(logits.float(), Exponential(approximation=name)).double()
    ones = exponential(torch.zeros(1), Exponential(approximation=name)).double()
    ours = (ones + 15 * p).log()
    wrong = (1 + 15 * logits.double().exp()).log()
    off = (lse.flatten().double() - ours).abs().max()
    assert off < 3e-7
    if name == "fexp_u20":
        assert (lse.flatten().double() - wrong).abs().max() > 20 * off


def test_fma_rounds_once():
    a = torch.tensor([1 + 2**-12, 3.0])
    assert fma(a, a, -torch.tensor([1 + 2**-11, 9.0])).tolist() == [2**-24, 0.0]
    wide = torch.tensor([3.0], dtype=torch.float64)
    assert fma(wide, 2.0, 1.0).dtype == torch.float64


def test_fma_against_exact_arithmetic():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2000, generator=generator) for _ in range(2))
    # c near a tie of the product: a few bits are left below float64's last one
    c = -(a * b).bfloat16().float() * 2.0 ** torch.randint(-3, 30, (2000,), generator=generator)
    exact = [
        Fraction(x) * Fraction(y) + Fraction(z)
        for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
    ]
    ours = fma(a, b, c)
    for got, value in zip(ours.tolist(), exact, strict=True):
        below, above = (float(np.nextafter(np.float32(got), np.float32(s))) for s in (-9e9, 9e9))
        least = abs(Fraction(got) - value)
        assert all(least <= abs(Fraction(x) - value) for x in (below, above))
    tie, one = torch.tensor([2.0**-24]), torch.tensor([1.0])
    for small, expected in ((2.0**-80, 1 + 2.0**-23), (-(2.0**-80), 1.0), (0.0, 1.0)):
        # 1 + 2^-24 (1 + small): the tie is broken by what float64 cannot hold
        assert fma(tie, 1.0, one).item() == 1.0
        left = exponentials._to_odd(
            torch.tensor([1 + 2.0**-24], dtype=torch.float64),
            torch.tensor([small], dtype=torch.float64),
            torch.tensor([1 + 2.0**-24], dtype=torch.float64),
        )
        assert left.float().item() == expected


def test_numba_waits_for_float32():
    code = (
        "import sys, torch; from roundoff.operators.exponentials import exponential;"
        "from roundoff.sites import Exponential;"
        "exponential(torch.ones(2, dtype=torch.float64), Exponential());"
        "assert 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("base", ["e", "2"])
@pytest.mark.parametrize("name", EXPONENTIALS)
def test_a_value_does_not_depend_on_where_it_stands(name, base):
    x = -8 * torch.rand(7 * 500, generator=torch.Generator().manual_seed(0))
    how = Exponential(base, approximation=name)
    parts = torch.cat([exponential(part, how) for part in x.split(7)])
    assert torch.equal(exponential(x, how), parts)


def test_the_cubic_of_flash_attention_4_has_the_published_error():
    """Against mpmath on one octave, whose fractions are those of all: 8.8e-5 (arXiv 2603.05451)."""
    mpmath = pytest.importorskip("mpmath")
    x = torch.linspace(-1, 0, 4001)
    y = exponential(x, Exponential("2", approximation="cubic_exp2"))
    pairs = zip(x.tolist(), y.tolist(), strict=True)
    errors = [abs(float(b / mpmath.mpf(2) ** a - 1)) for a, b in pairs]
    assert 8e-5 < max(errors) <= 8.8e-5
    whole = torch.arange(-126.0, 128.0)
    powers = exponential(whole, Exponential("2", approximation="cubic_exp2"))
    assert torch.equal(powers, torch.exp2(whole.double()).float())


def test_a_share_of_the_columns_takes_the_polynomial():
    x = -torch.rand(3, 40) * 5
    mixed = exponential(x, Exponential("2", approximation="cubic_exp2", columns=(16, 4)))
    cubic = exponential(x, Exponential("2", approximation="cubic_exp2"))
    exact = exponential(x, Exponential("2"))
    taken = [c for c in range(40) if c % 16 >= 12]
    assert same_bits(mixed[:, taken].contiguous(), cubic[:, taken].contiguous())
    others = [c for c in range(40) if c % 16 < 12]
    assert same_bits(mixed[:, others].contiguous(), exact[:, others].contiguous())
    assert not torch.equal(cubic, exact)
