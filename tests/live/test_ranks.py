"""Two processes: the same training under DistributedDataParallel, and sharded by fully_shard."""

import json
import pathlib

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from roundoff.live import activations
from roundoff.live.monitor import Monitor
from roundoff.live.sources import Tensors
from roundoff.live.watch import Watch

from ..exact import same
from ..several import PROCESSES, in_processes

STEPS = 4
KINDS = ("parameters", "gradients", "updates", "moments", "activations", "attention")
ALL = [Watch(of=kind, every=1) for kind in KINDS]


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.out(functional.dropout(y.transpose(1, 2).flatten(-2), 0.1))


def batch(step, rank):
    return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2 * step + rank))


def trained(rank, *, wrap, watch, place=()):
    torch.manual_seed(0)
    model = wrap(Attending())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    monitor = watch and Monitor(model, optimizer, watch=watch, to=place)
    for step in range(STEPS):
        functional.mse_loss(model(batch(step, rank)), batch(step, rank)).backward()
        optimizer.step()
        optimizer.zero_grad()
    if monitor:
        monitor.close()
    left = [local(p).detach().clone() for p in model.parameters()] + [torch.get_rng_state()]
    return left, monitor and [reading.to_record() for reading in monitor.readings]


def failing(*_):
    raise MemoryError("planted")


def local(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def sharded(model):
    from torch.distributed.fsdp import fully_shard

    fully_shard(model.qkv)
    return fully_shard(model)


def worker(rank, place):
    found = {}
    for name, wrap in {"ddp": DistributedDataParallel, "fsdp": sharded}.items():
        found[name] = trained(rank, wrap=wrap, watch=None)
        found[name + " watched"] = trained(
            rank, wrap=wrap, watch=ALL, place=f"{place}/{name}-{rank}.jsonl"
        )
    if rank == 1:  # what fails in one process leaves no other waiting
        Tensors.end = failing
    found["failed"] = trained(rank, wrap=DistributedDataParallel, watch=ALL)
    original = activations.observe
    activations.observe = lambda *args: (torch.rand(rank), original(*args))[1]
    found["disturbed"] = trained(rank, wrap=DistributedDataParallel, watch=ALL)
    torch.save(found, f"{place}/{rank}.pt")


def outcome(place):
    in_processes(worker, place)
    return [torch.load(f"{place}/{rank}.pt", weights_only=False) for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return str(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def ranks(place):
    return outcome(place)


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_the_training_is_bit_for_bit_what_it_was(ranks, how):
    for found in ranks:
        assert same(found[how][0], found[f"{how} watched"][0])


def test_a_planted_disturbance_is_seen(ranks):
    assert not same(ranks[1]["ddp"][0], ranks[1]["disturbed"][0])


def test_a_failure_in_one_process_costs_its_own_part(ranks):
    assert same(ranks[1]["ddp"][0], ranks[1]["failed"][0])
    assert {r["of"] for r in ranks[0]["failed"][1]} == set(KINDS)


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_the_first_process_knows_all_and_writes(ranks, place, how):
    first, second = (found[f"{how} watched"][1] for found in ranks)
    assert first
    assert second == []
    lines = (pathlib.Path(place) / f"{how}-0.jsonl").read_text("utf-8").splitlines()
    written = [json.loads(line) for line in lines]
    assert len({line.pop("begun") for line in written}) == 1
    assert written[-len(first) :] == first
    assert len(written) == STEPS * len(first)
    assert not (pathlib.Path(place) / f"{how}-1.jsonl").exists()


def test_shards_and_replicas_say_the_same(ranks):
    """What is replicated counts once, a shard everywhere, and activations of both batches."""
    replicated, shards = (ranks[0][f"{how} watched"][1] for how in ("ddp", "fsdp"))

    def values(readings):
        return {
            (r["of"], r["name"], name): value
            for r in readings if r["of"] != "attention"
            for name, value in r.items() if not isinstance(value, str)
        }  # fmt: skip

    assert values(shards) == pytest.approx(values(replicated), rel=1e-3)
    assert ("moments", "*:exp_avg", "norm") in values(shards)
