"""Verdicts: false alarms as rare as alpha says, gains found when they are as large as told."""

import math

import pytest
import torch
from scipy import stats

from roundoff.errors import UsageError
from roundoff.metrics.direct import BLOCKS, DirectError, Track, Tracks, reduced
from roundoff.metrics.noise_or_bias import ENOUGH, gravest, judge

LARGE = 0.05
"""An alpha at which false alarms can be counted."""

RUNS = 300

PLAIN, REDRAWN = 120, 30  # of 150 samples


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, random):
    return torch.randn(*shape, generator=random)


def gathered(tensors):
    """Tracks of errors and gradients [samples, size] by name, all samples at once."""
    tracks = Tracks()
    for name, (x, g) in tensors.items():
        n, size = x.shape
        length = 1
        while n > BLOCKS * length:
            length *= 2
        pad = torch.zeros(BLOCKS * length - n, size)
        xs, gs = (torch.cat([t, pad]).view(BLOCKS, length, size) for t in (x, g))
        pairs = (xs, xs), (xs, gs), (gs, gs)
        sums = torch.stack([(a.double() * b).sum((1, 2)) for a, b in pairs])
        tracks.of[name] = Track(sums, xs.sum(1), torch.zeros(2, dtype=torch.long))
        tracks.samples, tracks.length = n, length
    return tracks


def simulated(make, seed, tensors=3):
    """A run of 150 samples of several tensors, each by `make(samples, random)`."""
    random = generator(seed)
    return DirectError(
        *(gathered({f"w{i}": make(n, random) for i in range(tensors)}) for n in (PLAIN, REDRAWN))
    )


def test_gathered_is_adding_one_by_one():
    x, g = (normal(150, 5, random=generator(s)) for s in (0, 1))
    tracks, fast = Tracks(), gathered({"w": (x, g)})
    for xt, gt in zip(x, g, strict=True):
        tracks.add({"w": reduced(xt, gt)})
    torch.testing.assert_close(fast.sums("w"), tracks.sums("w"))
    torch.testing.assert_close(fast.gram("w"), tracks.gram("w"), rtol=1e-4, atol=1e-5)
    assert (fast.samples, fast.length) == (tracks.samples, tracks.length)


# -- false alarms


def independent(n, random):
    return normal(n, 20, random=random), normal(n, 20, random=random)


def heavy(n, random):
    """Student's t with 3 degrees of freedom, for errors and gradients."""
    x, g = (normal(n, 20, random=random) for _ in range(2))
    chi = normal(2, n, 3, random=random).square().mean(2).sqrt()[..., None]
    return x / chi[0], g / chi[1]


def falling(n, random):
    """Gradients and errors become 100 times smaller."""
    size = torch.logspace(0, -2, n)[:, None]
    return size * normal(n, 20, random=random), size * normal(n, 20, random=random)


def in_pairs(n, random):
    """Two consecutive samples err alike: a block of `PLAIN` holds both."""
    x, g = independent(n, random)
    return x[torch.arange(n) // 2 * 2], g[torch.arange(n) // 2 * 2]


def one_direction(n, random):
    """Errors along a fixed vector, with a random sign and size; gradients too."""
    x, g = (normal(n, 1, random=random) * normal(1, 20, random=random) for _ in range(2))
    return x, g + 0.3 * normal(n, 20, random=random)


def skewed(n, random):
    """Rare large errors one way, frequent small ones the other."""
    along = normal(n, 4, random=random).square().mean(1, keepdim=True) - 1
    g = normal(n, 20, random=random)
    return along * g + normal(n, 20, random=random), g


NULLS = [independent, heavy, falling, in_pairs, one_direction, skewed]


def false_alarms(make, runs=RUNS):
    return sum(judge(simulated(make, s), alpha=LARGE).verdict != "noise" for s in range(runs))


@pytest.mark.parametrize("make", NULLS)
def test_false_alarms_are_as_rare_as_alpha_says(make):
    alarms = false_alarms(make)
    assert stats.binom.sf(alarms - 1, RUNS, LARGE) > 1e-3, f"{alarms} of {RUNS} runs"


def drifting(n, random):
    """Errors that go on over many blocks are no noise: what the counting above can see."""
    steps = normal(n, 20, random=random).cumsum(0)
    return steps, normal(n, 20, random=random)


def test_counting_finds_what_is_not_noise():
    assert false_alarms(drifting, runs=50) > 40


def test_all_tests_of_many_tensors_are_accounted_for():
    alarms = sum(
        judge(simulated(independent, s, tensors=60), alpha=LARGE).verdict != "noise"
        for s in range(100)
    )
    assert stats.binom.sf(alarms - 1, 100, LARGE) > 1e-3


# -- power


@pytest.mark.parametrize("gain", [-1e-3, 2.0**-9, 0.5])
def test_a_pure_gain_is_found(gain):
    def pure(n, random):
        g = normal(n, 20, random=random)
        return gain * g, g

    judged = judge(simulated(pure, 0))
    assert judged.verdict == "biased"
    assert {t.verdict for t in judged.tensors} == {"biased"}
    assert judged.all.gain.value == pytest.approx(gain, rel=1e-5)
    assert judged.all.size == pytest.approx(abs(gain), rel=1e-5)
    assert "biased: 3 of 3 tensors" in str(judged)


def with_gain(size, noise=independent):
    def make(n, random):
        x, g = noise(n, random)
        return x + size * g, g

    return make


def found(size, *, tensors, runs=200):
    """Of how many runs the first tensor, which alone has the gain, is called biased."""
    count = 0
    for seed in range(runs):
        error, other = (
            simulated(with_gain(size), seed, 1),
            simulated(independent, ~seed % 2**31, tensors),
        )
        for tracks, more in ((error.plain, other.plain), (error.redrawn, other.redrawn)):
            tracks.of["biased"] = tracks.of.pop("w0")
            tracks.of |= more.of
        judged = judge(error)
        count += next(t for t in judged.tensors if t.name == "biased").verdict == "biased"
    return count


def told(tensors):
    """What runs of noise say that they could have found, in the middle."""
    rows = [judge(simulated(independent, s, tensors + 1)).tensors[0] for s in range(50)]
    return torch.tensor([row.detectable for row in rows]).median().item()


@pytest.mark.parametrize("tensors", [0, 9])
def test_a_gain_as_large_as_told_is_called_biased_9_times_in_10(tensors):
    size = told(tensors)
    at_least = found(size, tensors=tensors)
    assert stats.binom.cdf(at_least, 200, 0.9) > 1e-3, f"{at_least} of 200"
    assert found(size / 2, tensors=tensors) < 100  # nor is twice as much told as is needed


def test_a_gain_that_redrawn_weights_do_not_confirm_is_persistent():
    random = generator(0)
    error = DirectError(
        gathered({"w": with_gain(1.0)(PLAIN, random)}),
        gathered({"w": independent(REDRAWN, random)}),
    )
    judged = judge(error)
    assert judged.verdict == "persistent"
    assert "redrawn" in judged.tensors[0].why


def test_a_gain_of_the_other_sign_is_no_confirmation():
    random = generator(0)
    error = DirectError(
        gathered({"w": with_gain(3.0)(PLAIN, random)}),
        gathered({"w": with_gain(-3.0)(REDRAWN, random)}),
    )
    assert judge(error).verdict == "persistent"


def test_an_error_along_a_fixed_vector_is_persistent_without_a_gain():
    def shifted(n, random):
        x, g = independent(n, random)
        return x + 2.0, g - g.mean(1, keepdim=True)

    judged = judge(simulated(shifted, 0))
    assert judged.verdict == "persistent"
    assert judged.all.persistence > 5
    assert "without a gain" in judged.tensors[0].why


def test_small_gains_of_all_tensors_are_found_as_one():
    """Pooled, they are beyond what any tensor shows; the sentence names no tensor then."""
    judged = judge(simulated(with_gain(0.03), 0, tensors=60))
    assert judged.all.verdict == judged.verdict == "biased"
    assert all(t.verdict == "noise" for t in judged.tensors)
    assert "biased: 0 of 60 tensors" in str(judged)
    assert "e.g. all" in str(judged)


# -- what cannot be told


def test_without_a_sample_one_line_says_so():
    with pytest.raises(UsageError, match=r"^no step was sampled; take more steps"):
        judge(DirectError())
    with pytest.raises(UsageError, match=r"\(7 came to nothing\)"):
        judge(DirectError(given_up=7))


@pytest.mark.parametrize("samples", [1, 2, ENOUGH - 1])
def test_few_samples_tell_nothing_even_of_a_pure_gain(samples):
    g = normal(samples, 5, random=generator(0))
    judged = judge(DirectError(gathered({"w": (g, g)}), gathered({"w": (g, g)})))
    assert judged.verdict == "cannot tell"
    assert f"{ENOUGH} are the least" in judged.tensors[0].why
    assert str(judged)


def test_one_sample_could_have_detected_nothing():
    judged = judge(DirectError(gathered({"w": (torch.ones(1, 5), torch.ones(1, 5))})))
    assert judged.tensors[0].detectable == math.inf


def test_equal_gradients_are_identical_also_where_they_are_zero():
    g = normal(40, 5, random=generator(0))
    tensors = {"w": (0 * g, g), "unused": (0 * g, 0 * g), "empty": (g[:, :0], g[:, :0])}
    judged = judge(DirectError(gathered(tensors)))
    assert [t.verdict for t in judged.tensors] == ["identical"] * 3
    assert judged.verdict == "identical"
    assert str(judged).startswith("identical: 3 of 3 tensors")


def test_errors_where_the_gradient_is_zero_are_judged_by_their_persistence():
    x = normal(40, 5, random=generator(0))
    judged = judge(DirectError(gathered({"w": (x + 3, 0 * x)})))
    assert judged.tensors[0].verdict == "persistent"
    assert math.isnan(judged.tensors[0].gain.value)
    assert judge(DirectError(gathered({"w": (x, 0 * x)}))).verdict == "noise"


def broken(whose, samples, total=60):
    random, error = generator(0), DirectError()
    for t in range(total):
        x, g = normal(6, random=random), normal(6, random=random)
        bad = torch.full((6,), math.nan)
        pair = {"candidate": (bad, g), "baseline": (bad, bad)}[whose] if t < samples else (x, g)
        error.plain.add({"w": reduced(*pair), "v": reduced(x, g)})
    return judge(error)


def test_a_candidate_that_alone_is_not_finite_cannot_be_told():
    judged = broken("candidate", 1)
    assert judged.verdict == "cannot tell"
    assert [t.verdict for t in judged.tensors] == ["cannot tell", "noise"]
    assert judged.tensors[0].nonfinite == 1
    assert broken("candidate", 60).tensors[0].verdict == "cannot tell"


def test_a_baseline_that_is_not_finite_costs_its_samples_only():
    assert broken("baseline", 5).verdict == "noise"
    judged = broken("baseline", 60 - ENOUGH + 1)
    assert judged.tensors[0].verdict == "cannot tell"
    assert judged.tensors[1].verdict == "noise"
    assert broken("baseline", 60).tensors[0].verdict == "cannot tell"


def test_judging_changes_nothing():
    error = simulated(independent, 0)
    before = error.copied()
    assert judge(error) == judge(error)
    pairs = zip(error.tensors().values(), before.tensors().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_scale_does_not_matter():
    """Errors 1e-12 of the gradients are judged like those of their size."""

    def tiny(make):
        def scaled(n, random):
            x, g = make(n, random)
            return 1e-12 * x, g

        return scaled

    assert judge(simulated(tiny(independent), 0)).verdict == "noise"
    assert judge(simulated(tiny(with_gain(3.0)), 0)).verdict == "biased"


def test_the_gravest_verdict():
    assert gravest(["identical", "noise"]) == "noise"
    assert gravest(["noise", "cannot tell", "identical"]) == "cannot tell"
    assert gravest(["persistent", "biased"]) == "biased"


def test_a_short_tensor_and_a_sketched_one_pool():
    """Grams add up whatever the lengths of what they came from."""
    error = DirectError()
    for t in range(30):
        random = generator(t)
        long, short = normal(10_000, random=random), normal(3, random=random)
        error.plain.add({"long": reduced(long, long), "short": reduced(short, short)})
    assert judge(error).all.size == pytest.approx(1)


def test_a_gradient_that_is_only_rounding_has_no_gain():
    """Where g and c are unrelated noise, <x,g> = -<g,g>: the baseline's own noise."""

    def unrelated(n, random):
        g, c = normal(n, 20, random=random), normal(n, 20, random=random)
        return c - g, g

    judged = judge(simulated(unrelated, 0))
    assert judged.all.gain.value < -0.9
    assert judged.verdict == "noise"
