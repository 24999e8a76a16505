"""A training does not see its monitor: all that it leaves is bit for bit what it was without."""

import contextlib
import functools
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from roundoff.errors import UnsupportedError
from roundoff.intercept.running import RUNNING
from roundoff.live import activations
from roundoff.live.monitor import Monitor
from roundoff.live.watch import Watch

from ..exact import same

STEPS = 5
KINDS = ("parameters", "gradients", "updates", "moments", "activations", "attention")
ALL = [Watch(of=kind, every=1) for kind in KINDS[:-1]]
ALL.append(Watch(of="attention", every=1, layers=2))
OUTSIDE = [watch for watch in ALL if watch.of not in ("activations", "attention")]


class Block(nn.Module):
    def __init__(self, dropout=0.1):
        super().__init__()
        self.norm, self.qkv, self.last = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        qkv = self.qkv(self.norm(x)).chunk(3, -1)
        q, k, v = (y.unflatten(-1, (2, 8)).transpose(1, 2) for y in qkv)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.drop(self.last(y.transpose(1, 2).flatten(-2)))


class Small(nn.Module):
    """Two blocks of attention with dropout, and numbers drawn from every random state."""

    def __init__(self, checkpointed=None):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 16, batch_first=True)  # fused in eval mode
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.first, self.checkpointed = nn.Linear(8, 16), checkpointed
        self.blocks, self.out = nn.ModuleList([Block(), Block()]), nn.Linear(16, 8)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            if self.checkpointed is None:
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.checkpointed)
        x = x * (1 + 0.01 * random.random() + 0.01 * float(np.random.rand()))
        self.seen += 1
        return self.out(self.encoder(x))


class Plain(nn.Module):
    """What torch.compile takes whole."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.first, self.out = nn.Linear(8, 16), nn.Linear(16, 8)
        self.block = Block(dropout=0.0)
        self.to(dtype)

    def forward(self, x):
        return self.out(self.block(functional.silu(self.first(x.to(self.out.weight.dtype)))))


def built(make):
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    return make()


def loss_of(model, i):
    x = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(i))
    return functional.mse_loss(model(x).float(), x)


# -- loops; each yields after its backward passes


def plain(model, optimizer, set_to_none=True):
    for i in range(STEPS):
        loss = loss_of(model, i)
        loss.backward()
        yield loss
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)


def accumulated(model, optimizer):
    for i in range(STEPS):
        for part in range(3):
            loss = loss_of(model, 3 * i + part) / 3
            loss.backward()
        yield loss
        optimizer.step()
        optimizer.zero_grad()


def validated(model, optimizer):
    """Other uses of the model between and within the steps; what they give is looked at too."""
    for i in range(STEPS):
        model.eval()
        with torch.no_grad():
            yield loss_of(model, 100 + i)
        model.train()
        loss = loss_of(model, i)
        model.eval()
        with torch.inference_mode():
            yield loss_of(model, 200 + i)
        model.train()
        loss.backward()
        yield loss
        optimizer.step()
        optimizer.zero_grad()


def cast(model, optimizer):
    for i in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, i)
        loss.backward()
        yield loss
        optimizer.step()
        optimizer.zero_grad()


def scaled(model, optimizer, unscaled=True):
    """Overflows and skipped steps, then a scale that falls and grows."""
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=2.0**40, growth_interval=3, backoff_factor=2**-9
    )
    scales = set()
    for i in range(3 * STEPS):
        with torch.autocast("cpu", torch.float16):
            loss = loss_of(model, i)
        scaler.scale(loss).backward()
        if unscaled:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        yield loss
        scaler.step(optimizer)
        scaler.update()
        scales.add(scaler.get_scale())
        optimizer.zero_grad()
    assert len(scales) > 3


LOOPS = {
    "plain": plain,
    "zeroed": functools.partial(plain, set_to_none=False),
    "accumulated": accumulated,
    "validated": validated,
    "autocast": cast,
    "scaled": scaled,
}


def trace(model, loop, watch=None, *, called=None, fused=False):
    """All that a training leaves at every step, and its monitor."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    called = model if called is None else called
    monitor = watch and Monitor(called, optimizer, watch=watch)
    found = []
    for loss in loop(called, optimizer):
        found += [loss.detach().clone()]
        found += [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        found += [t.detach().clone() for t in (*model.parameters(), *model.buffers())]
        found += [v.clone() for s in optimizer.state.values() for v in s.values()]
        found += [torch.get_rng_state(), torch.tensor(random.getstate()[1])]
        found += [torch.tensor(np.random.get_state()[1].astype(np.int64))]
    if monitor:
        monitor.close()
        nothing_left(model, optimizer)
    return found, monitor


def nothing_left(model, optimizer):
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert not any(p._backward_hooks for p in model.parameters() if p._backward_hooks is not None)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert functional.scaled_dot_product_attention is torch._C._nn.scaled_dot_product_attention
    assert not RUNNING.stack
    assert torch.backends.mha.get_fastpath_enabled()


@functools.cache
def bare(loop):
    return trace(built(Small), LOOPS[loop])[0]


@pytest.mark.parametrize("loop", LOOPS)
def test_all_kinds_at_every_step(loop):
    found, monitor = trace(built(Small), LOOPS[loop], ALL)
    assert same(bare(loop), found)
    assert {reading.of for reading in monitor.readings} == set(KINDS)
    heads = {reading.place for reading in monitor.readings if reading.of == "attention"}
    assert len(heads) == 4  # two of three layers, in turn
    assert monitor.findings == [] or loop == "scaled"
    assert (monitor.skipped > 0) == (loop == "scaled")


def test_some_steps_only():
    watch = [w.model_copy(update={"every": 3, "start": 1}) for w in ALL]
    assert same(bare("plain"), trace(built(Small), plain, watch)[0])


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoints(reentrant):
    make = functools.partial(Small, checkpointed=reentrant)
    found, monitor = trace(built(make), plain, ALL)
    assert same(trace(built(make), plain)[0], found)
    # The encoder's attention has dropout, and no ratio; of the block's, also from its second run.
    ratios = [r.values["dq_ratio"] for r in monitor.readings if "dq_ratio" in r.values]
    assert len(ratios) == 2
    assert all(1 / 3 < ratio < 3 for ratio in ratios)
    seen_once = trace(built(Small), plain, ALL)[1].readings
    assert [r.values for r in seen_once] == [r.values for r in monitor.readings]


def test_fused_optimizers_whose_gradients_stay_scaled():
    loop = functools.partial(scaled, unscaled=False)
    found, monitor = trace(built(Small), loop, ALL, fused=True)
    assert same(trace(built(Small), loop, fused=True)[0], found)
    assert monitor.skipped > 0
    unfused = trace(built(Small), loop, ALL)[1]
    norms = [
        next(r.values["norm"] for r in m.readings if (r.of, r.name) == ("gradients", "*"))
        for m in (monitor, unfused)
    ]  # of the loss itself, in both
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_two_monitors_at_once():
    others = []

    def twice(model, optimizer):
        others.append(Monitor(model, optimizer, watch=ALL))
        yield from plain(model, optimizer)
        others[0].close()

    found, monitor = trace(built(Small), twice, ALL)
    assert same(bare("plain"), found)
    assert [r.to_record() for r in monitor.readings] == [r.to_record() for r in others[0].readings]


# -- torch.compile


dynamo_warns = pytest.mark.filterwarnings(  # of its own
    "ignore:The .grad attribute of a Tensor:UserWarning"
)


@dynamo_warns
@pytest.mark.parametrize(("backend", "inner"), [("inductor", False), ("aot_eager", True)])
def test_compiled_models(backend, inner, caplog):
    """Also where the monitor was given the model inside, and does not know that it is compiled."""
    make = functools.partial(Plain, torch.bfloat16)

    def traced(watch):
        torch.compiler.reset()
        model = built(make)
        compiled = torch.compile(model, backend=backend)
        graphs = torch._dynamo.utils.counters["stats"]
        graphs.clear()
        if not inner:
            found, monitor = trace(model, plain, watch, called=compiled)
        else:
            found, monitor = trace(model, lambda _, o: plain(compiled, o), watch)
        return found, monitor, graphs["unique_graphs"]

    without, _, graphs = traced(None)
    found, monitor, watched_graphs = traced(ALL if inner else OUTSIDE)
    assert same(without, found)
    # Once it has seen that it sees nothing, a monitor that was not told takes its hooks out.
    assert (graphs, watched_graphs) == (1, 2 if inner else 1)
    assert {reading.of for reading in monitor.readings} == {w.of for w in OUTSIDE}
    assert ("it runs inside a torch.compile graph" in caplog.text) == inner


@dynamo_warns
def test_what_a_graph_hides_is_refused_by_name():
    model = Plain()
    model.block.compile(backend="eager")
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(UnsupportedError, match=r"activations of 'block'.*torch\.compile"):
        Monitor(model, optimizer, watch=[Watch(of="activations")])
    with Monitor(model, optimizer, watch=[Watch(of="activations", names="out", every=1)]) as m:
        loss_of(model, 0).backward()
        optimizer.step()
    assert [reading.name for reading in m.readings] == ["out"]
    nothing_left(model, optimizer)
    compiled = torch.compile(model)
    with Monitor(compiled, optimizer) as monitor:
        assert {source.watch.of for source in monitor._sources} == {"parameters", "gradients"}


@dynamo_warns
def test_by_default_only_what_is_compiled_is_left_out(caplog):
    graphs = torch._dynamo.utils.counters["stats"]

    def trained(watched):
        torch.compiler.reset()
        graphs.clear()
        model = built(lambda: nn.Sequential(nn.Linear(8, 16), Block(0.0), Block(0.0)))
        model[1].compile(backend="aot_eager")
        optimizer = torch.optim.AdamW(model.parameters())
        monitor = Monitor(model, optimizer, every=2) if watched else contextlib.nullcontext()
        with monitor:
            for i in range(3):
                model(torch.ones(2, 6, 8) * i).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        return [*model.parameters()], graphs["unique_graphs"], monitor

    weights, graph, _ = trained(False)
    found, watched_graph, monitor = trained(True)
    assert same(weights, found)
    assert graph == watched_graph == 1
    seen = {(r.of, r.name) for r in monitor.readings}
    assert {("activations", "0"), ("activations", "2.qkv")} <= seen
    assert not {name for _, name in seen} & {"1", "1.qkv"}
    said = [record.getMessage() for record in caplog.records if record.name == "roundoff"]
    assert said == [
        "monitor: attention: left out (compiled: 1)",
        "monitor: activations: left out 1 (compiled)",
    ]


# -- planted disturbances: what the comparisons above must see


def drawing(probes, states, x, observe=activations.observe):
    torch.rand(1)
    return observe(probes, states, x)


def changing(probes, states, x, observe=activations.observe):
    x.detach().mul_(1 + 2**-6)
    return observe(probes, states, x)


@pytest.mark.parametrize("planted", [drawing, changing])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_planted_disturbance_is_seen(loop, planted, monkeypatch):
    monkeypatch.setattr(activations, "observe", planted)
    assert not same(bare(loop), trace(built(Small), LOOPS[loop], ALL[4:5])[0])
