"""The direct error is kept in fixed memory, and nothing of it is lost on the way."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roundoff.errors import UsageError
from roundoff.metrics.direct import BLOCKS, SKETCH, DirectError, Tracks, reduced, sketched


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tracked(x, g):
    tracks = Tracks()
    for xt, gt in zip(x, g, strict=True):
        tracks.add({"w": reduced(xt, gt)})
    return tracks


@settings(deadline=None, max_examples=40)
@given(samples=st.integers(1, 300), size=st.integers(0, 9), seed=st.integers(0, 2**31))
def test_blocks_hold_all_samples_however_often_they_were_halved(samples, size, seed):
    x, g = normal(samples, size, seed=seed), normal(samples, size, seed=seed + 1)
    tracks = tracked(x, g)
    xd, gd = x.double(), g.double()
    parts = [slice(i, i + tracks.length) for i in range(0, samples, tracks.length)]
    sums = [[(a[p] * b[p]).sum() for p in parts] for a, b in ((xd, xd), (xd, gd), (gd, gd))]
    whole = torch.stack([xd[p].sum(0) for p in parts])
    torch.testing.assert_close(tracks.sums("w"), torch.tensor(sums, dtype=torch.float64))
    torch.testing.assert_close(tracks.gram("w"), whole @ whole.T, rtol=1e-4, atol=1e-4)
    assert tracks.blocks == len(parts) <= BLOCKS
    assert tracks.blocks >= min(samples, BLOCKS // 2)


def test_memory_does_not_grow_with_samples():
    def kept(samples):
        error, one = DirectError(), {"w": reduced(normal(3), normal(3))}
        for _ in range(samples):
            error.plain.add(one)
            error.redrawn.add(one)
        return {name: tuple(t.shape) for name, t in error.tensors().items()}

    assert kept(64) == kept(10_000)


@settings(deadline=None, max_examples=25)
@given(size=st.integers(0, 3 * SKETCH), factor=st.floats(-4, 4), seed=st.integers(0, 2**31))
def test_a_sketch_is_linear_and_short(size, factor, seed):
    x, y = normal(size, seed=seed), normal(size, seed=seed + 1)
    together = sketched(x) + factor * sketched(y)
    torch.testing.assert_close(sketched(x + factor * y), together, rtol=1e-4, atol=1e-4)
    assert together.numel() == min(size, SKETCH)
    if size <= SKETCH:
        assert torch.equal(sketched(x), x)


ROWS = 40
SHAPES = {
    "noise": lambda seed: normal(ROWS * SKETCH + 17, seed=seed),
    "equal": lambda seed: torch.ones(ROWS * SKETCH + 17) * (1 + seed),
    "equal rows": lambda seed: normal(SKETCH, seed=seed).repeat(ROWS),
    "shifted rows": lambda seed: normal(SKETCH + 3, seed=seed).repeat(ROWS),
    "slow": lambda seed: torch.linspace(seed, 4, ROWS * SKETCH).sin(),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_sketch_keeps_inner_products(name):
    """Also where all rows are alike, which one sign a row would not keep apart."""
    x, y = (SHAPES[name](seed) for seed in (0, 1))
    for a, b in ((x, x), (x, y)):
        found, exact = (sketched(a) @ sketched(b)).item(), (a.double() @ b.double()).item()
        assert abs(found - exact) < 5 / math.sqrt(SKETCH) * (a.norm() * b.norm()).item()


def test_sketches_are_right_on_average_over_signs(monkeypatch):
    from roundoff.metrics import direct

    x, y, found = torch.ones(3 * 11), normal(3 * 11), []
    monkeypatch.setattr(direct, "SKETCH", 11)
    for seed in range(2000):
        signs = normal(100, seed=seed).sign()
        monkeypatch.setattr(direct, "_signs", lambda n, signs=signs: signs[:n])
        found.append((direct.sketched(x) @ direct.sketched(y)).item())
    values = torch.tensor(found)
    assert abs(values.mean() - x @ y) < 4 * values.std() / math.sqrt(len(found))
    assert values.std() > 0.1  # the signs do matter


def test_merging_is_adding_the_samples_of_both():
    x, g = normal(2, 100, 7), normal(2, 100, 7, seed=1)
    one, two = DirectError(plain=tracked(x[0], g[0])), DirectError(plain=tracked(x[1], g[1]))
    before = two.copied()
    one.merge(two)
    sums = tracked(x[0], g[0]).sums("w") + tracked(x[1], g[1]).sums("w")
    assert torch.equal(one.plain.sums("w"), sums)
    both = x.sum(0).view(50, 2, 7).sum(1).double()
    torch.testing.assert_close(one.plain.gram("w"), both @ both.T, rtol=1e-4, atol=1e-4)
    assert all(
        torch.equal(a, b)
        for a, b in zip(two.tensors().values(), before.tensors().values(), strict=True)
    )


def test_workers_at_other_steps_do_not_merge():
    x, g = normal(10, 3), normal(10, 3, seed=1)
    one, two = DirectError(plain=tracked(x, g)), DirectError(plain=tracked(x[:9], g[:9]))
    with pytest.raises(UsageError, match="same steps"):
        one.merge(two)


def test_a_copy_shares_nothing():
    error = DirectError(plain=tracked(normal(5, 3), normal(5, 3)))
    copied = error.copied()
    error.plain.add({"w": reduced(normal(3), normal(3))})
    assert copied.plain.samples == 5
    assert copied.plain.sums("w").shape == (3, 5)
    assert not error.tensors()["plain/sums/w"].equal(copied.tensors()["plain/sums/w"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_samples_that_are_not_finite_are_counted_by_whose_they_are(bad):
    x, g = torch.ones(4), torch.ones(4)
    broken = torch.tensor([bad, 1, 1, 1])
    tracks = Tracks()
    tracks.add({"w": reduced(x, g)})
    tracks.add({"w": reduced(broken, g)})  # the candidate alone
    tracks.add({"w": reduced(broken, broken)})  # the baseline, whatever the candidate
    tracks.add({"w": reduced(x, broken)})
    assert tracks.of["w"].nonfinite.tolist() == [1, 2]
    assert tracks.sums("w")[0].tolist() == [4, 0, 0, 0]
    assert tracks.gram("w")[1:].any().item() is False


def test_products_beyond_float32_are_finite():
    one = reduced(torch.full((3,), 1e30), torch.full((3,), 1e-30))
    assert one.dots.tolist() == pytest.approx([3e60, 3.0, 3e-60], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_exact(dtype):
    x, g = normal(50).to(dtype), normal(50, seed=1).to(dtype)
    xf, gf = (t.float().double() for t in (x, g))
    wanted = [(a @ b).item() for a, b in ((xf, xf), (xf, gf), (gf, gf))]
    assert reduced(x, g).dots.tolist() == pytest.approx(wanted, rel=1e-12)


def test_empty_tensors_and_scalars():
    assert reduced(torch.zeros(0, 3), torch.zeros(0, 3)).dots.tolist() == [0, 0, 0]
    assert reduced(torch.tensor(2.0), torch.tensor(3.0)).dots.tolist() == [4, 6, 9]


def test_every_sample_needs_the_same_tensors():
    tracks = tracked(normal(1, 3), normal(1, 3))
    with pytest.raises(UsageError, match="not in all of them: v"):
        tracks.add({"w": reduced(normal(3), normal(3)), "v": reduced(normal(3), normal(3))})
    assert tracks.samples == 1
