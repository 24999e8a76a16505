"""What a monitor sees, what it says of it, and that nothing that fails in it reaches a training."""

import dataclasses
import logging
import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

import roundoff
from roundoff.errors import RunError, UsageError
from roundoff.intercept.attention import AttentionFunction
from roundoff.intercept.running import RUNNING
from roundoff.intercept.swap import attention_function, swapped
from roundoff.live import activations
from roundoff.live.attention import AttentionCalls
from roundoff.live.integrations.attached import Attached
from roundoff.live.monitor import Monitor
from roundoff.live.sinks import JsonLines
from roundoff.live.sources import Tensors
from roundoff.live.watch import Watch, load_watches
from roundoff.operators.attention.observed import ROW_PROBES
from roundoff.store.json import loads

RATE = 0.1
TORCH = functional.scaled_dot_product_attention


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.qkv, self.out = nn.Linear(8, 16), nn.Linear(16, 48), nn.Linear(16, 8)

    def forward(self, x):
        qkv = self.qkv(self.first(x)).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in qkv)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(-2))


def nothing_left(net, optimizer):
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert functional.scaled_dot_product_attention is TORCH
    assert not RUNNING.stack


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def batch(step=0):
    return torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(step))


def train(net, optimizer, steps=1):
    for step in range(steps):
        functional.mse_loss(net(batch(step)), batch(step)).backward()
        optimizer.step()
        optimizer.zero_grad()


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=RATE)


def watching(net, steps=1, **options):
    optimizer = sgd(net)
    with Monitor(net, optimizer, **options) as monitor:
        train(net, optimizer, steps)
    return monitor


def values(monitor, of, name, head=None):
    (found,) = (r.values for r in monitor.readings if (r.of, r.name, r.head) == (of, name, head))
    return found


def test_gradients_updates_and_parameters(net):
    probes = ("norm", "amax", "mean", "zeros")
    kinds = ("gradients", "updates", "parameters")
    before = net.out.weight.detach().clone()
    monitor = watching(net, watch=[Watch(of=kind, probes=probes, every=1) for kind in kinds])
    moved = net.out.weight.detach() - before
    assert values(monitor, "updates", "out.weight")["norm"] == pytest.approx(moved.norm().item())
    gradient = values(monitor, "gradients", "out.weight")
    assert gradient["mean"] * -RATE == pytest.approx(moved.mean().item(), rel=1e-4)
    every = torch.cat([p.detach().flatten() for p in net.parameters()])
    assert values(monitor, "parameters", "*")["norm"] == pytest.approx(every.norm().item())
    assert values(monitor, "parameters", "*")["amax"] == every.abs().max().item()


def test_moments_of_adam(net):
    optimizer = torch.optim.Adam(net.parameters())
    watch = [Watch(of="moments", names="out.*", probes=("amax", "underflow"), format="e4m3fn",
                   every=1)]  # fmt: skip
    with Monitor(net, optimizer, watch=watch) as monitor:
        train(net, optimizer)
    second = optimizer.state[net.out.weight]["exp_avg_sq"]
    found = values(monitor, "moments", "out.weight:exp_avg_sq")
    assert found["amax"] == second.max().item()
    assert found["underflow_e4m3fn"] == (second.to(torch.float8_e4m3fn) == 0).double().mean()


def test_activations_of_accumulated_batches_are_joined(net):
    optimizer, seen = sgd(net), []
    net.first.register_forward_hook(lambda module, args, out: seen.append(out.detach()))
    watch = [Watch(of="activations", names="first", probes=("norm", "amax"), every=1)]
    with Monitor(net, optimizer, watch=watch) as monitor:
        for step in range(3):
            net(batch(step)).sum().backward()
        optimizer.step()
    whole = torch.stack(seen)
    assert values(monitor, "activations", "first")["norm"] == pytest.approx(whole.norm().item())
    assert values(monitor, "activations", "first")["amax"] == whole.abs().max().item()


def test_when(net):
    steps = []

    class Sink:
        def write(self, step, readings, findings):
            steps.append((step, {r.of for r in readings}))

        def close(self):
            steps.append("closed")

    watch = [Watch(of="gradients", every=3, start=1), Watch(of="parameters", every=2, stop=12)]
    watching(net, 6, watch=watch, to=[Sink()], first_step=10)
    assert steps == [
        (10, {"gradients", "parameters"}), (13, {"gradients"}), "closed",
    ]  # fmt: skip


def test_the_kernel_that_runs_is_seen_and_a_registered_one_too(net):
    watch = [Watch(of="attention", every=1)]
    own = values(watching(net, watch=watch), "attention", "model", 1)
    assert own["ratio"] == pytest.approx(1, abs=0.3)
    assert 1 / 3 < own["dq_ratio"] < 3  # of few and small errors, each sum in an order of its own
    with swapped(net, attention_function("fa2@bf16")):
        other = values(watching(net, watch=watch), "attention", "model", 1)
    assert other["ratio"] > 1e3


def test_a_users_function_of_transformers(net):
    from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    def rough(module, q, k, v, mask, *, scaling=None, **_):
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
        )
        if module.layer_idx == 1:
            out = torch.cat([out[:, :3], 0.99 * out[:, 3:]], 1)
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("rough", rough)
    AttentionMaskInterface.register("rough", sdpa_mask)
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, attn_implementation="rough",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = sgd(model)
    tokens = torch.randint(32, (2, 16), generator=torch.Generator().manual_seed(0))
    watch = [Watch(of="attention", every=1, layers=2)]
    with Monitor(model, optimizer, watch=watch) as monitor:
        for _ in range(3):
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert values(monitor, "attention", "model.layers.1.self_attn", 3)["gain"] == pytest.approx(
        -0.01, abs=1e-4
    )
    named = {(f.name, f.head) for f in monitor.findings}
    assert named == {("model.layers.1.self_attn", 3)}
    assert monitor.findings[0].step == 1  # at the second sample in a row
    assert AttentionInterface()["rough"] is rough


def test_dropout_leaves_the_logits(net):
    class Dropping(Net):
        def forward(self, x):
            qkv = self.qkv(self.first(x)).chunk(3, -1)
            q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in qkv)
            y = functional.scaled_dot_product_attention(q, k, v, dropout_p=0.5)
            return self.out(y.transpose(1, 2).flatten(-2))

    found = values(watching(Dropping(), watch=[Watch(of="attention", every=1)]), "attention",
                   "model", 0)  # fmt: skip
    assert math.isfinite(found["entropy"])
    assert "rmse" not in found


def test_layers_take_turns():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 3)
    optimizer, places = sgd(model), []
    watch = [Watch(of="attention", layers=2, rows=2, every=1)]
    with Monitor(model, optimizer, watch=watch) as monitor:
        for step in range(3):
            model(batch(step)).square().mean().backward()
            optimizer.step()
            places.append({r.name.split(".")[1] for r in monitor.readings})
    assert places == [{"0", "1"}, {"2", "0"}, {"1", "2"}]


def test_the_first_module_with_a_nan_is_named(net, caplog):
    optimizer = sgd(net)
    with Monitor(net, optimizer, every=1) as monitor:
        train(net, optimizer)
        with torch.no_grad():
            net.qkv.weight[3, 4] = math.inf
        train(net, optimizer, 2)
    named = {f.values and (f.name, f.step, f.what) for f in monitor.findings}
    assert ("qkv", 1, "nonfinite") in named
    assert not any(f.name == "first" for f in monitor.findings)
    assert "qkv: the first output with NaN or infinity" in caplog.text
    assert caplog.text.count("the first output") == 1
    bad = [finding for finding in monitor.findings if finding.step == 1]
    assert [f.name for f in bad][:2] == ["qkv", "model"]  # what ran, and then what came of it
    assert bad[1].why == "the first attention with NaN or infinity"
    assert {f.why.partition(",")[0] for f in bad[2:]} == {
        "NaN or infinity in 6 of 6 gradients", "NaN or infinity in 6 of 6 parameters",
    }  # fmt: skip


# -- what is not seen


def stepped(optimizer, loss):
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda net, x: net.forward(x), "never called in it: expected model(...)"),
        (lambda net, x: net.eval()(x), "called in eval mode only"),
    ],
)
def test_a_step_in_which_the_model_was_not_called(net, call, words, caplog):
    torch._dynamo.utils.counters.clear()  # whatever was compiled in this process before
    optimizer = sgd(net)
    with Monitor(net, optimizer, every=1) as monitor:
        for step in range(2):
            stepped(optimizer, call(net, batch(step)).square().mean())
            assert {r.of for r in monitor.readings} == {"gradients", "parameters"}
        assert len(caplog.records) == 1
        assert f"attention were not seen in step 0; the model was {words}" in caplog.text
        stepped(optimizer, net.train()(batch()).square().mean())
    assert {r.of for r in monitor.readings} > {"activations", "attention"}


def test_where_attention_gives_nothing_it_is_said_once(caplog):
    class Dropping(nn.MultiheadAttention):
        def forward(self, x):
            return super().forward(x, x, x, need_weights=False)[0]

    watching(nn.Sequential(nn.Linear(8, 8)), 2, watch=["attention"], every=1)
    watching(Dropping(8, 2, dropout=0.5, batch_first=True), 2, watch=["attention"], every=1)
    first, second = (record.getMessage() for record in caplog.records)
    assert "no attention was seen" in first
    assert "attention of model has no error and no ratio" in second


# -- faults


@pytest.mark.parametrize("kind", ["activations", "attention"])
def test_a_probe_that_raises_is_switched_off_once(net, kind, monkeypatch, caplog):
    def broken(*_):
        raise ValueError("no such thing\nat all")

    monkeypatch.setattr(activations, "observe", broken)
    monkeypatch.setattr(AttentionCalls, "_keep", broken)
    watch = [Watch(of=kind, every=1), Watch(of="gradients", every=1)]
    bare = Net()
    bare.load_state_dict(net.state_dict())
    train(bare, sgd(bare), 3)
    with caplog.at_level(logging.WARNING):
        monitor = watching(net, 3, watch=watch)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), bare.parameters(), strict=True))
    assert len(caplog.records) == 1
    assert f"{kind}: switched off after an error" in caplog.text
    nothing_left(net, sgd(net))
    assert "ValueError: no such thing" in caplog.text
    assert {r.of for r in monitor.readings} == {"gradients"}


def test_a_state_that_cannot_be_had_costs_its_own_kind(net, monkeypatch, caplog):
    """Where it fails, on its way to the CPU or as a number, the others are read."""
    watch = [Watch(of=kind, every=1) for kind in ("gradients", "parameters", "attention")]

    class Poisoned(torch.Tensor):
        def reshape(self, *_):
            raise RuntimeError("poisoned")

    end = Tensors.end

    def poisoned(self, seen):
        end(self, seen)
        if self.watch.of == "parameters":
            key, state = seen.states.popitem()
            seen.states[key] = state.as_subclass(Poisoned)

    def worthless(state):
        raise ValueError("worthless")

    monkeypatch.setattr(Tensors, "end", poisoned)
    logits = dataclasses.replace(ROW_PROBES["logits"], values=worthless)
    monkeypatch.setitem(ROW_PROBES, "logits", logits)
    monitor = watching(net, 3, watch=watch)
    assert {r.of for r in monitor.readings} == {"gradients"}
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("monitor: parameters: switched off")
    assert "poisoned" in first
    assert second.startswith("monitor: attention: switched off")
    assert "worthless" in second


def test_a_sink_that_raises_is_switched_off(net, caplog):
    class Sink:
        def write(self, step, readings, findings):
            raise OSError(28, "No space left on device")

        def close(self):
            raise OSError(28, "No space left on device")

    monitor = watching(net, 3, every=1, to=[Sink()])
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text
    assert monitor.readings


def test_closing_in_the_middle_of_a_step(net):
    optimizer = sgd(net)
    monitor = Monitor(net, optimizer, every=1)
    loss = net(batch()).sum()
    monitor.close()
    monitor.close()
    loss.backward()
    optimizer.step()
    monitor.at(7)
    assert not monitor.readings
    nothing_left(net, optimizer)


def test_ctrl_c_behind_a_step(net, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(AttentionCalls, "end", stopped)
    optimizer = sgd(net)
    with pytest.raises(KeyboardInterrupt), Monitor(net, optimizer, every=1):
        train(net, optimizer)
    nothing_left(net, optimizer)


def test_a_function_that_a_user_has_put_in_torchs_place_stays(net, monkeypatch):
    calls = []

    def mine(*args, **options):
        calls.append(len(args))
        return TORCH(*args, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", mine)
    monitor = watching(net, 3, watch=[Watch(of="attention", every=2, probes=["deviation"])])
    assert len(calls) == 3
    assert functional.scaled_dot_product_attention is mine
    assert values(monitor, "attention", "model", 0)["ratio"] == pytest.approx(1, abs=0.3)


def test_a_function_that_comes_while_a_door_is_open_stays(net, monkeypatch):
    monkeypatch.setattr(functional, "scaled_dot_product_attention", TORCH)
    optimizer = sgd(net)
    with Monitor(net, optimizer, every=1):
        ours = functional.scaled_dot_product_attention

        def mine(*args, **options):
            return ours(*args, **options)

        functional.scaled_dot_product_attention = mine
        train(net, optimizer, 3)
    assert functional.scaled_dot_product_attention is mine


def test_two_forward_passes_of_one_backward_pass_belong_to_one_step(net):
    optimizer = sgd(net)
    with Monitor(net, optimizer, every=1) as monitor:
        first, second = net(100 * batch(0)), net(batch(1))
        (first.square().mean() + second.square().mean()).backward()
        optimizer.step()
    assert monitor.skipped == 0
    assert values(monitor, "activations", "out")["amax"] == pytest.approx(first.abs().max().item())


def test_a_pinned_back_end_is_asked_again(net):
    optimizer = sgd(net)
    with Monitor(net, optimizer, watch=[Watch(of="attention", every=1)]) as monitor:
        with sdpa_kernel(SDPBackend.MATH):
            loss = functional.mse_loss(net(batch()), batch())
        loss.backward()
        optimizer.step()
    found = values(monitor, "attention", "model", 0)
    assert (found["ratio"], found["dq_ratio"]) == (1, 1)  # torch-math's recipe, to the bit


def test_nan_of_a_kernel_is_found_by_attention_alone(net):
    def mine(q, k, v, mask, causal, scale):
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
        return torch.cat([out[:, :1], math.nan * out[:, 1:]], 1)

    with swapped(net, AttentionFunction("mine", mine)):
        monitor = watching(net, watch=[Watch(of="attention", every=1, probes=["deviation"])])
    assert [(f.what, f.name, f.head) for f in monitor.findings] == [("nonfinite", "model", 1)]


def test_shapes_of_torchs_own_modules():
    torch.manual_seed(0)
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    optimizer, x = sgd(model), batch()
    hidden = torch.zeros(2, 12, dtype=torch.bool)
    hidden[1, 7:] = True
    with Monitor(model, optimizer, watch=[Watch(of="attention", every=1)]) as monitor:
        for _ in range(4):
            out, _ = model(x, x, x, key_padding_mask=hidden, need_weights=False)
            out.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            found = values(monitor, "attention", "model", 0)
            assert 1 / 2 < found["ratio"] < 2  # of few numbers
            assert 1 / 3 < found["dq_ratio"] < 3


# -- bad input


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"of": "gradient"}, "of is 'gradient'"),
        ({"of": "gradients", "names": "layers.*"}, "no parameters fit the pattern 'layers.*'"),
        ({"of": "activations", "names": "frist"}, "no modules fit the pattern 'frist'"),
        ({"of": "gradients", "probes": ["overflow"]}, "asks about a format"),
        ({"of": "gradients", "probes": ["overflow"], "format": "e4m3fnn"}, "did you mean 'e4m3fn'"),
        ({"of": "attention", "probes": ["logit"]}, "did you mean 'logits'"),
        ({"of": "gradients", "evry": 3}, "did you mean 'every'"),
        ({"of": "gradients", "rows": 3}, "it has no 'rows'"),
        ({"of": "gradients", "format": "fp99x"}, "unknown format"),
        ({"of": "gradients", "every": 0, "start": -1}, "every is 0.*start is -1"),
        ({"of": "gradients", "every": "5"}, "every is '5': input should be a valid integer"),
        ({"of": "gradients", "start": 10, "stop": 5}, "stop is 5 and start 10"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(net, fields, words):
    with pytest.raises(UsageError, match=words) as caught:
        Monitor(net, sgd(net), watch=[Watch(**fields)])
    assert "\n" not in str(caught.value)
    assert not any(m._forward_hooks for m in net.modules())


def test_models_and_optimizers_that_do_not_fit(net):
    with pytest.raises(UsageError, match="expected the one it trains"):
        Monitor(net, sgd(Net()))
    with pytest.raises(UsageError, match=r"model is a list; expected a torch\.nn\.Module"):
        Monitor([], sgd(net))
    with pytest.raises(UsageError, match="beside watch"):
        Monitor(net, sgd(net), watch=[Watch(of="gradients")], every=3)
    with pytest.raises(UsageError, match="watch is empty"):
        Monitor(net, sgd(net), watch=[])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0}, "every is 0: input should be greater"),
        ({"every": "5"}, "every is '5': input should be a valid integer"),
        ({"every": 2.5}, r"every is 2\.5: input should be a valid integer"),
        ({"first_step": -3}, "first_step is -3; expected an integer of at least 0"),
        ({"watch": ["gradient"]}, "of is 'gradient'"),
        ({"watch": [3]}, "watch has 3; expected a Watch"),
        ({"to": [3]}, "to has 3; expected a path, or an object with write"),
        ({"to": 3}, "to has 3"),
        ({"to": [JsonLines]}, "to has <class.*expected a path, or an object with write"),
    ],
)
def test_options_are_checked_before_anything_is_changed(net, options, words):
    optimizer = sgd(net)
    with pytest.raises(UsageError, match=words) as caught:
        Monitor(net, optimizer, **options)
    assert "\n" not in str(caught.value)
    nothing_left(net, optimizer)
    if "first_step" not in options:
        with pytest.raises(UsageError, match=words):
            Attached(**options)


def test_a_constructor_that_is_interrupted_leaves_nothing(net, monkeypatch, tmp_path):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(AttentionCalls, "begin", stopped)
    optimizer = sgd(net)
    with pytest.raises(KeyboardInterrupt):
        Monitor(net, optimizer, to=tmp_path / "run")
    nothing_left(net, optimizer)
    assert not [*tmp_path.iterdir()]


def test_what_is_meant_is_taken(net, tmp_path):
    lines = tmp_path / "a.jsonl"
    ways = [str(lines), [str(lines)], [lines], JsonLines(lines), [JsonLines(lines)], None]
    watch = Watch(of="gradients", probes="norm", every=1)
    for i, to in enumerate(ways, 1):
        monitor = watching(net, 1, watch=watch, to=to)
        assert {r.of for r in monitor.readings} == {"gradients"}
        found = {loads(line)["begun"] for line in lines.read_text().splitlines()}
        assert len(found) == min(i, 5)
    for watch in ("moments", ["moments"]):
        assert watching(net, 1, watch=watch, every=2)._watches == [Watch(of="moments", every=2)]


def test_a_place_that_cannot_be_written(net, tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("file/run", "file/x.jsonl"):
        with pytest.raises(RunError, match="cannot"):
            Monitor(net, sgd(net), to=tmp_path / place)
    assert not net._forward_pre_hooks


TOML = """
every = 2
[[watch]]
of = "gradients"
[[watch]]
of = "attention"
probes = ["logits"]
every = 4
"""


def test_watches_of_a_file(net, tmp_path):
    path = tmp_path / "monitor.toml"
    path.write_text(TOML)
    gradients, attention = load_watches(path)
    assert (gradients.every, attention.every, attention.measured) == (2, 4, ("logits",))
    run = tmp_path / "run"
    watching(net, 5, watch=path, to=run)
    rows = roundoff.Run.open(run).rows()
    assert [row["step"] for row in rows] == [0, 2, 4]
    watching(net, 2, watch=path, to=run, first_step=5)  # a resumed training goes on
    assert {row["step"] for row in roundoff.Run.open(run).rows()} == {0, 2, 4, 6}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("evry = 3\n[[watch]]\nof='gradients'", "unknown 'evry'"),
        ("every = 3", r"expected every, start, stop and \[\[watch\]\]"),
        ("[[watch]]\nof='gradient'", r"monitor.toml, \[\[watch\]\] 1: .*'gradient'"),
        ("[[watch", "expected a TOML file"),
        ("watch = [3]", "is no table"),
    ],
)
def test_files_that_are_wrong(tmp_path, text, words):
    path = tmp_path / "monitor.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        load_watches(path)
