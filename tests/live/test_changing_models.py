"""Models that are copied, saved, frozen or extended while they are watched; unusual tensors."""

import copy
import io
import pickle
import pickletools

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from roundoff.live.monitor import Monitor
from roundoff.live.watch import Watch

from ..exact import same

KINDS = ("parameters", "gradients", "updates", "moments", "activations", "attention")
ALL = [Watch(of=kind, every=1) for kind in KINDS]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.qkv, self.out = nn.Linear(8, 8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):
        qkv = self.qkv(self.first(x)).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in qkv)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(-2))


def built(make=Net, **options):
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, **options)
    return model, optimizer


def step(model, optimizer, i=0):
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(i))
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("how", [copy.deepcopy, AveragedModel, saved])
def test_a_copy_is_not_watched(how):
    model, optimizer = built()
    with Monitor(model, optimizer, watch=ALL) as monitor:
        step(model, optimizer)
        other = how(model)  # while the next step is watched
        other(torch.full((2, 5, 8), 1e6)).sum().backward()
        for p in other.parameters():
            p.grad = None
        step(model, optimizer, 1)
        sizes = [r.values["amax"] for r in monitor.readings if r.of == "activations"]
    assert max(sizes) < 1e3
    assert monitor.skipped == 0
    other(torch.ones(2, 5, 8))
    bare, optimizer = built()
    step(bare, optimizer)
    step(bare, optimizer, 1)
    assert same([*model.parameters()], [*bare.parameters()])


def test_a_pickle_is_read_without_us():
    model, optimizer = built()
    model.__class__ = nn.Identity  # no class of this file in it
    model.forward = None
    del model.forward
    with Monitor(model, optimizer, watch=ALL[4:]):
        text = pickle.dumps(model)
    assert not [arg for _, arg, _ in pickletools.genops(text) if "roundoff" in str(arg)]


def freeze(model, optimizer):
    model.first.requires_grad_(False)


def unfreeze(model, optimizer):
    model.first.requires_grad_(True)


def replace(model, optimizer):
    model.out = nn.Linear(8, 8)
    optimizer.add_param_group({"params": model.out.parameters()})


@pytest.mark.parametrize("watch", [ALL, None])
def test_weights_that_are_frozen_and_new_ones(watch, caplog):
    found = []
    for watched in (False, True):
        model, optimizer = built()
        monitor = watched and Monitor(model, optimizer, watch=watch, every=None if watch else 1)
        for change in (freeze, unfreeze, replace, lambda *_: None):
            step(model, optimizer)
            change(model, optimizer)
        found.append([*model.parameters()])
        if monitor:
            monitor.close()
            assert monitor.step == 4
    assert same(*found)
    assert caplog.records == []
    new = [r for r in monitor.readings if (r.of, r.name) == ("parameters", "out.weight")]
    assert [r.step for r in new] == [3]
    norm = float(model.out.weight.detach().norm())
    assert new[0].values["norm"] == pytest.approx(norm)


def test_an_error_of_the_clock_ends_the_monitor_and_not_the_step(caplog, monkeypatch):
    def broken(*_):
        raise RuntimeError("planted")

    model, optimizer = built()
    with Monitor(model, optimizer, watch=ALL) as monitor:
        for name in ("_begin", "_end", "_read"):
            monkeypatch.setattr(monitor, name, broken)
        step(model, optimizer)
        step(model, optimizer)
        assert monitor.step == 2
    assert all("planted" in record.getMessage() for record in caplog.records)
    assert not optimizer._optimizer_step_pre_hooks
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Unusual(nn.Module):
    """A complex weight, sparse gradients, a scripted part."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 4, sparse=True)
        self.turn = nn.Parameter(torch.ones(4, dtype=torch.cfloat))
        self.scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4)))
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.scripted((self.table(x.long() % 9) * self.turn).real))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_an_unusual_tensor_is_left_out_by_name(caplog):
    torch.manual_seed(0)
    model = Unusual()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kinds = ("gradients", "parameters", "activations", "attention")
    watch = [Watch(of=of, every=1) for of in kinds]
    with Monitor(model, optimizer, watch=watch) as monitor:
        for i in range(3):
            step(model, optimizer, i)
    read = {(r.of, r.name) for r in monitor.readings}
    assert {("gradients", "out.weight"), ("gradients", "*"), ("parameters", "table.weight")} <= read
    assert {("activations", "out"), ("activations", "table")} <= read
    assert "monitor: gradients: left out table.weight (sparse)" in caplog.text
    assert "monitor: gradients: left out turn (complex)" in caplog.text
    assert "monitor: parameters: left out turn (complex)" in caplog.text
    assert "monitor: activations: left out scripted (scripted)" in caplog.text
    assert "switched off" not in caplog.text
    assert len(caplog.records) == 5  # each once; and that there is no attention
