"""Two processes under DistributedDataParallel: the same training, and one verdict for both."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

from roundoff.errors import UsageError
from roundoff.training.shadow import Shadow, shadow
from roundoff.training.variants import variant

from ..several import PROCESSES, in_processes

STEPS = 40


def shorter(model):
    for weight in model.parameters():
        weight.register_hook(lambda gradient: 0.99 * gradient)


def batch(step, rank):
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(2 * step + rank))


def loss_of(model, x):
    return mse_loss(model(x), x[:, :2])


class Disturbing(Shadow):
    """Its processes go apart: what the comparison below must see."""

    def _sample(self, loss_of):
        super()._sample(loss_of)
        torch.rand(1)


def trained(rank, kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Linear(8, 2))
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    way = variant(shorter)
    opened = kind(wrapped, {way.name: way}) if kind else contextlib.nullcontext(plain(wrapped))
    with opened as lossed:
        for step in range(STEPS):
            parts = [(2 * step, wrapped.no_sync), (2 * step + 1, contextlib.nullcontext)]
            for number, sync in parts:
                with sync():
                    (lossed(loss_of, batch(number, rank)) / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters()], opened, wrapped


def plain(model):
    return lambda loss_of, *args: loss_of(model, *args)


def worker(rank, place):
    bare, _, _ = trained(rank, None)
    seen, opened, wrapped = trained(rank, Shadow)
    other, _, _ = trained(rank, Disturbing)
    own = {n: t.clone() for n, t in opened.errors["shorter"].tensors().items()}
    judged = [opened.judge(), opened.judge()]  # nothing is added up twice
    unlike = unlike_calls(rank, wrapped)
    found = {"bare": bare, "seen": seen, "other": other, "own": own, "judged": judged}
    torch.save(found | {"unlike": unlike}, f"{place}/{rank}.pt")


def unlike_calls(rank, wrapped):
    """One process samples more often: told to both, and neither waits for ever."""
    with shadow(wrapped, None, shorter, every=1 + rank) as s:
        for step in range(4):
            s(loss_of, batch(step, rank)).backward()
    with pytest.raises(UsageError, match="same calls") as caught:
        s.judge()
    return str(caught.value)


def outcome(place):
    in_processes(worker, place)
    return [torch.load(f"{place}/{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return outcome(str(tmp_path_factory.mktemp("ddp")))


def test_weights_are_bit_for_bit_what_they_were(ranks):
    for found in ranks:
        pairs = zip(found["bare"], found["seen"], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert all(torch.equal(a, b) for a, b in zip(ranks[0]["seen"], found["seen"], strict=True))
        disturbed = zip(found["bare"], found["other"], strict=True)
        assert not all(torch.equal(a, b) for a, b in disturbed)


def test_the_verdict_is_one(ranks):
    first, second = (found["judged"] for found in ranks)
    assert first[0] == first[1] == second[0] == second[1]
    assert first[0].verdict == "biased"


def test_it_is_of_the_batches_of_both(ranks):
    judged, size = ranks[0]["judged"][0], [0.0, 0.0]
    for found in ranks:
        sums = found["own"]["plain/sums/0.weight"].sum(1)
        size = [size[0] + sums[0].item(), size[1] + sums[2].item()]
    assert judged.tensors[0].size == pytest.approx((size[0] / size[1]) ** 0.5, rel=1e-9)
    assert not torch.equal(*(found["own"]["plain/sums/0.weight"] for found in ranks))


def test_processes_that_sampled_other_calls_are_told(ranks):
    assert ranks[0]["unlike"] == ranks[1]["unlike"]
