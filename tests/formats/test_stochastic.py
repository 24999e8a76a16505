"""Stochastic rounding: the mean is x, and the generator's state is all that it depends on."""

import pytest
import torch

from roundoff.errors import UsageError
from roundoff.formats import FORMATS, round_to

N = 1 << 20
pytestmark = pytest.mark.usefixtures("twin")


def draw(x, name, seed=0):
    return round_to(x, name, mode="stochastic", generator=torch.Generator().manual_seed(seed))


def shares(drawn, low):
    return (drawn != low).double().mean().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.5, 0.25, 2**-4 + 2**-7, 1 - 2**-6, 2**-12])
@pytest.mark.parametrize("name", ["bf16", "e4m3fn", "e5m2", "fp16", "tf32", "e2m1"])
def test_the_share_of_ups_is_the_position_between_neighbours(name, share, dtype):
    format = FORMATS[name]
    # From 1, from minus 2, within the subnormals, and below the first of them.
    tiny = format.smallest_subnormal
    for low, spacing in ((1.0, format.eps), (-2.0, -2 * format.eps), (tiny, tiny), (0.0, tiny)):
        x = torch.full((N,), low + share * spacing, dtype=dtype)
        if x[0].double().item() != low + share * spacing:
            continue  # float32 has no such number
        error = shares(draw(x, name), low) - share
        assert abs(error) < 5 * (share * (1 - share) / N) ** 0.5


def test_far_below_the_smallest_number_the_chance_goes_on():
    tiny = FORMATS["e4m3fn"].smallest_subnormal
    x = torch.full((1 << 22,), tiny * 2.0**-18)
    ups = (draw(x, "e4m3fn") == tiny).sum().item()
    assert abs(ups - 16) < 5 * 4
    assert (draw(torch.full((N,), tiny * 2.0**-40), "e4m3fn") == 0).all()


def test_the_mean_of_many_different_values():
    x = torch.randn(N, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    error = draw(x, "bf16") - x
    assert abs(error.mean() / error.std()) * N**0.5 < 5


def test_draws_of_neighbours_and_of_later_calls_are_unrelated():
    x = torch.full((N,), 1 + 2.0**-8)
    generator = torch.Generator().manual_seed(7)
    first, second = (
        (round_to(x, "bf16", mode="stochastic", generator=generator) > 1).double() - 0.5
        for _ in range(2)
    )
    for a, b in ((first, second), *((first[:-lag], first[lag:]) for lag in (1, 2, 64, 4096))):
        assert abs((a * b).mean().item()) < 5 * 0.25 / N**0.5


def test_one_state_gives_one_result_and_moves_on():
    x = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(draw(x, "bf16", seed=4), draw(x, "bf16", seed=4))
    assert not torch.equal(draw(x, "bf16", seed=4), draw(x, "bf16", seed=5))
    generator = torch.Generator().manual_seed(4)
    calls = [round_to(x, "bf16", mode="stochastic", generator=generator) for _ in range(2)]
    assert torch.equal(calls[0], draw(x, "bf16", seed=4))
    assert not torch.equal(calls[0], calls[1])


def test_threads_and_strides_change_nothing():
    x = torch.randn(300, 400, generator=torch.Generator().manual_seed(1))
    torch.set_num_threads(2)
    whole = draw(x, "bf16")
    torch.set_num_threads(1)
    assert torch.equal(draw(x, "bf16"), whole)
    assert torch.equal(draw(x.t().contiguous().t(), "bf16"), whole)


def test_the_generator_belongs_to_stochastic_alone():
    with pytest.raises(UsageError, match="generator"):
        round_to(torch.ones(1), "bf16", mode="stochastic")
    with pytest.raises(UsageError, match="no generator"):
        round_to(torch.ones(1), "bf16", generator=torch.Generator())
