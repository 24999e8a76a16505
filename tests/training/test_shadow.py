"""The shadow sees x_t as it is, and the training does not see the shadow, bit for bit."""

import contextlib
import dataclasses
import functools
import gc
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from roundoff.errors import CandidateError, UnknownNameError, UnsupportedError, UsageError
from roundoff.intercept.attention import AttentionFunction
from roundoff.training.shadow import REDRAWN, Shadow, shadow
from roundoff.training.variants import AS_IT_IS, attended, autocast, patched, variant

from ..exact import same

STEPS = REDRAWN + 3


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x):
        q, k, v = self.qkv(x).view(x.shape[0], 3, 2, 8).permute(1, 2, 0, 3).unsqueeze(1)
        return functional.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1)


class Small(nn.Module):
    """Attention, dropout, batch norm, tied, frozen and unused weights; state of several kinds."""

    def __init__(self, checkpointed=None):
        super().__init__()
        self.first, self.norm = nn.Linear(8, 16), nn.BatchNorm1d(16)
        self.attend, self.out = Attention(), nn.Linear(16, 8)
        self.tied = nn.Linear(16, 8)
        self.tied.weight = self.out.weight
        self.frozen, self.unused = nn.Linear(8, 8), nn.Linear(3, 3)
        self.frozen.requires_grad_(False)
        self.drop, self.checkpointed = nn.Dropout(0.2), checkpointed
        self.dice = torch.Generator().manual_seed(5)
        self.calls, self.mean = 0, None
        self.register_buffer("reassigned", torch.zeros(()))

    def forward(self, x):
        self.calls += 1  # a schedule
        x = x + 0.1 * torch.randn(x.shape, generator=self.dice)
        x = self.drop(self.norm(self.first(self.frozen(x))))
        if self.checkpointed is None:
            x = x + self.attend(x)
        else:
            x = x + checkpoint(self.attend, x, use_reentrant=self.checkpointed)
        x = x * (1 + 0.01 * random.random() + 0.01 * float(np.random.rand()) + self.reassigned)
        self.reassigned = self.reassigned + 1e-3
        self.mean = x.detach().mean()
        return self.out(x) + self.tied(x) + 0.01 * self.calls


def built(checkpointed=None):
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    return Small(checkpointed)


def loss_of(model, x):
    """Calls the model twice."""
    return functional.mse_loss(model(x).float(), x) + 0.1 * model(x[:3]).float().square().mean()


def batch(i):
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(i))


def blurred(model):
    model.out.register_forward_hook(lambda module, args, out: out.bfloat16().to(out.dtype))


def rough(q, k, v, mask, causal, scale):
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out * (1 + 1e-3 * torch.rand(()) + 1e-3 * random.random() + 1e-3 * np.random.rand())


CANDIDATES = {
    "none": None,
    "patch": blurred,
    "attention": AttentionFunction("rough", rough),
    "bf16": autocast("bf16"),
}


# -- loops


def plain(model, optimizer, lossed, set_to_none=True):
    for i in range(STEPS):
        loss = lossed(loss_of, batch(i))
        loss.backward()
        yield loss
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)


def clipped(model, optimizer, lossed):
    for i in range(STEPS):
        loss = lossed(loss_of, batch(i))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        yield loss
        optimizer.step()
        optimizer.zero_grad()


def accumulated(model, optimizer, lossed, inside=False):
    for i in range(STEPS):
        for part in range(4):
            if inside:
                loss = lossed(lambda model, x: loss_of(model, x) / 4, batch(4 * i + part))
            else:
                loss = lossed(loss_of, batch(4 * i + part)) / 4
            loss.backward()
        yield loss
        optimizer.step()
        optimizer.zero_grad()


def summed(model, optimizer, lossed):
    """Two losses of one backward pass, which share what autocast keeps."""
    for i in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16):
            loss = lossed(loss_of, batch(2 * i)) + lossed(loss_of, batch(2 * i + 1))
        loss.backward()
        yield loss
        optimizer.step()
        optimizer.zero_grad()


def validated(model, optimizer, lossed):
    """Other uses of the model, with and without gradients, between the steps."""
    for i in range(STEPS):
        loss = lossed(loss_of, batch(i))
        with torch.no_grad():
            lossed(loss_of, batch(1000 + i))
        loss_of(model, batch(2000 + i)).backward()
        loss.backward()
        yield loss
        optimizer.step()
        optimizer.zero_grad()


def cast(model, optimizer, lossed):
    for i in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16):
            loss = lossed(loss_of, batch(i))
        loss.backward()
        yield loss
        optimizer.step()
        optimizer.zero_grad()


def accumulated_cast(model, optimizer, lossed):
    """All parts in one block: what autocast keeps outlives a backward pass."""
    for i in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16):
            for part in range(3):
                loss = lossed(loss_of, batch(3 * i + part))
                loss.backward()
        yield loss
        optimizer.step()
        optimizer.zero_grad()


def scaled(model, optimizer, lossed):
    """Overflows and skipped steps, then a scale that falls and grows."""
    scaler = torch.amp.GradScaler(
        "cpu", init_scale=2.0**40, growth_interval=3, backoff_factor=2**-9
    )
    scales = set()
    for i in range(3 * STEPS):
        with torch.autocast("cpu", torch.float16):
            loss = lossed(loss_of, batch(i))
        scaler.scale(loss).backward()
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
    "clipped": clipped,
    "accumulated": accumulated,
    "accumulated inside": functools.partial(accumulated, inside=True),
    "summed": summed,
    "validated": validated,
    "cast": cast,
    "accumulated cast": accumulated_cast,
    "scaled": scaled,
}


def trace(loop, model, opened):
    """All that a training leaves: losses, gradients, weights, buffers, states, at every step."""
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    found = []
    with opened(model) as lossed:
        for loss in loop(model, optimizer, lossed):
            found += [loss.detach().clone()]
            found += [None if p.grad is None else p.grad.clone() for p in model.parameters()]
            found += [t.detach().clone() for t in (*model.parameters(), *model.buffers())]
            found += [v.clone() for s in optimizer.state.values() for v in s.values()]
            found += [torch.get_rng_state(), torch.tensor(random.getstate()[1])]
            found += [torch.tensor(np.random.get_state()[1].astype(np.int64))]
            own = getattr(model, "_orig_mod", model)
            found += [own.dice.get_state(), torch.tensor(own.calls), own.mean.clone()]
    assert not any(p._backward_hooks for p in model.parameters() if p._backward_hooks is not None)
    return found


@contextlib.contextmanager
def without(model):
    yield lambda loss_of, *args: loss_of(model, *args)


def shadowing(candidate, kind=Shadow, every=1, kept=None):
    def opened(model):
        way = variant(candidate)
        made = kind(model, {way.name: way}, every=every)
        if kept is not None:
            kept.append(made)
        return made

    return opened


@functools.cache
def bare_trace(loop):
    return trace(LOOPS[loop], built(), without)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("candidate", CANDIDATES)
def test_the_training_is_bit_for_bit_what_it_was(loop, candidate):
    kept = []
    bare = bare_trace(loop)
    seen = trace(LOOPS[loop], built(), shadowing(CANDIDATES[candidate], kept=kept))
    assert same(bare, seen)
    error = next(iter(kept[0].errors.values()))
    if loop == "summed":
        assert error.plain.samples == 0
        assert error.given_up > 0
    else:
        assert error.plain.samples > 3
        assert error.redrawn.samples > 0


def test_the_training_is_the_same_at_every_third_call():
    bare = trace(plain, built(), without)
    assert same(bare, trace(plain, built(), shadowing(blurred, every=3)))


def test_checkpointed_models():
    bare = trace(plain, built(False), without)
    for candidate in CANDIDATES.values():
        assert same(bare, trace(plain, built(False), shadowing(candidate)))


def test_reentrant_checkpoints_are_refused_and_nothing_is_disturbed():
    bare, model = trace(plain, built(True), without), built(True)
    with pytest.raises(UnsupportedError, match="use_reentrant=False"):
        trace(plain, model, shadowing(None))
    assert same(bare, trace(plain, model, without))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo's own
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("candidate", ["none", "patch", "attention"])
def test_compiled_models(backend, candidate):
    def compiled():
        torch.compiler.reset()
        torch.manual_seed(0)
        return torch.compile(Plain(), backend=backend)

    def loop(model, optimizer, lossed):
        for i in range(REDRAWN + 1):
            loss = lossed(lambda model, x: model(x).square().mean(), batch(i))
            loss.backward()
            yield loss
            optimizer.step()
            optimizer.zero_grad()

    bare = trace(loop, compiled(), without)
    assert same(bare, trace(loop, compiled(), shadowing(CANDIDATES[candidate])))


class Plain(Small):
    """Nothing that breaks a graph."""

    def forward(self, x):
        if self.mean is None:
            self.mean = torch.zeros(())
        return self.out(self.drop(self.norm(self.attend(self.first(x)))))


# -- the same check catches every disturbance


class DrawsOne(Shadow):
    def _sample(self, loss_of):
        super()._sample(loss_of)
        torch.rand(1)


class DrawsPython(Shadow):
    def _sample(self, loss_of):
        super()._sample(loss_of)
        random.random()


class TouchesGradients(Shadow):
    def _sample(self, loss_of):
        super()._sample(loss_of)
        loss_of(self._inner).backward()


class LeavesABit(Shadow):
    def _sample(self, loss_of):
        super()._sample(loss_of)
        self._inner.first.weight.data.view(torch.int32)[0, 0] ^= 1


class MovesBuffers(Shadow):
    def _sample(self, loss_of):
        super()._sample(loss_of)
        with torch.no_grad(), torch.random.fork_rng():
            self._inner.norm(torch.ones(4, 16))


@pytest.mark.parametrize(
    "kind", [DrawsOne, DrawsPython, TouchesGradients, LeavesABit, MovesBuffers]
)
@pytest.mark.parametrize("loop", ["plain", "accumulated", "cast", "scaled"])
def test_the_check_catches(kind, loop):
    bare = bare_trace(loop)
    assert not same(bare, trace(LOOPS[loop], built(), shadowing(blurred, kind=kind)))


# -- x_t is what it should be


class Affine(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))

    def forward(self, x):
        return (self.w * x).sum()


def tripled(model):
    model.register_forward_hook(lambda module, args, out: 3 * out)


X = torch.tensor([1.0, 2.0, -4.0])  # loss = w.x, so that g = x and the candidate's is 3x


def collected(opened, factor=1.0, calls=4, every=1):
    model = Affine()
    with shadow(model, None, tripled, every=every) as s:
        for i in range(calls):
            opened(s(Affine.__call__, (i + 1) * X), factor)
            model.zero_grad()
    return s


def sums(s):
    (error,) = s.errors.values()
    return error.plain.sums("w").T.tolist(), error.plain.of["w"].sketch[: error.plain.blocks]


@pytest.mark.parametrize("factor", [1.0, 0.25, 2.0**16])
def test_direct_errors_by_hand(factor):
    """<x,x> = 4 n^2 21, <x,g> = 2 n^2 21, <g,g> = n^2 21, whatever the loss was scaled by."""
    s = collected(lambda loss, factor: (factor * loss).backward(), factor)
    first = 1 if factor == 1.0 else 2  # the scale is learned at the first call
    dots, x = sums(s)
    assert dots == [[84.0 * n * n, 42.0 * n * n, 21.0 * n * n] for n in range(first, 5)]
    assert torch.equal(x, torch.stack([2 * n * X for n in range(first, 5)]))
    assert s.judge().given_up == first - 1


def test_every_counts_calls():
    s = collected(lambda loss, factor: loss.backward(), calls=7, every=3)
    assert [d[2] for d in sums(s)[0]] == [21.0 * n * n for n in (1, 4, 7)]
    assert s.calls == 7


def test_a_loss_that_changes_its_scale_is_given_up_and_learned():
    model = Affine()
    with shadow(model, None, tripled) as s:
        for factor in (1.0, 1.0, 8.0, 8.0):
            (factor * s(Affine.__call__, X)).backward()
    (error,) = s.errors.values()
    assert (error.plain.samples, error.given_up) == (3, 1)
    assert {tuple(d) for d in sums(s)[0]} == {(84.0, 42.0, 21.0)}


def test_errors_below_float32_are_seen_in_float64():
    model = Affine().double()

    def nearly(model):
        model.register_forward_hook(lambda module, args, out: (1 + 2.0**-40) * out)

    with shadow(model, None, nearly) as s:
        s(Affine.__call__, X.double()).backward()
    assert sums(s)[0] == [[21 * 2.0**-80, 21 * 2.0**-40, 21.0]]


def test_the_baseline_at_redrawn_weights_is_the_models():
    """The gradient of w.w is 2w: it shows at which weights it was taken."""
    model = Affine()
    seen = []

    def square(model, x):
        seen.append(model.w.detach().clone())
        return model.w.square().sum() + 0 * model(x)

    with shadow(model, None, lambda model: None) as s:
        for _ in range(REDRAWN):
            seen.clear()
            square_loss = s(square, X)
            square_loss.backward()
            model.zero_grad()
    there, candidate, here = seen  # the last call was redrawn
    assert torch.equal(there, candidate)
    assert not torch.equal(there, here)
    (error,) = s.errors.values()
    assert error.redrawn.sums("w")[2].item() == pytest.approx((2 * there).square().sum().item())
    assert error.redrawn.sums("w")[0].item() == 0


def test_redrawn_weights_are_seen_through_what_autocast_keeps():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))
    with torch.autocast("cpu", torch.bfloat16), shadow(model, None, None) as s:
        for i in range(4 * REDRAWN):
            s(lambda model, x: model(x).float().square().mean(), batch(i)).backward()
    (error,) = s.errors.values()
    assert (error.plain.samples, error.redrawn.samples) == (16, 4)
    assert not error.redrawn.sums("0.weight")[0].any()
    assert s.judge().tensors[0].why != ""


def test_the_model_as_it_is_is_identical():
    kept = []
    trace(functools.partial(accumulated, inside=True), built(), shadowing(None, kept=kept))
    assert kept[0].judge().verdict == "identical"


# -- what is not to be told is given up


def test_two_losses_of_one_backward_pass_are_given_up():
    model = Affine()
    with shadow(model, None, tripled) as s:
        for _ in range(3):
            a, b = s(Affine.__call__, X), s(Affine.__call__, 2 * X)
            (a + b).backward()
            del a, b
    with pytest.raises(UsageError, match="came to nothing"):
        s.judge()


def test_another_loss_in_between_is_not_taken_for_the_baselines():
    model = Affine()
    with shadow(model, None, tripled) as s:
        loss = s(Affine.__call__, X)
        model(100 * X).backward()
        loss.backward()
    assert sums(s)[0] == [[84.0, 42.0, 21.0]]


def test_a_second_backward_pass_is_not_looked_at():
    model = Affine()
    with shadow(model, None, tripled) as s:
        loss = s(Affine.__call__, X)
        loss.backward(retain_graph=True)
        loss.backward()
        model(X).backward()
    (error,) = s.errors.values()
    assert (error.plain.samples, error.given_up) == (1, 0)
    assert sums(s)[0] == [[84.0, 42.0, 21.0]]


def test_a_loss_that_is_not_all_of_it_is_told():
    model = Affine()
    with shadow(model, None, tripled) as s:
        for _ in range(30):
            (s(Affine.__call__, X) + model.w.square().sum()).backward()
    with pytest.raises(UsageError, match="must compute all of the loss"):
        s.judge()


def test_a_call_without_a_backward_pass_is_given_up():
    model = Affine()
    with shadow(model, None, tripled) as s:
        s(Affine.__call__, X)
        gc.collect()
        s(Affine.__call__, X).backward()
    (error,) = s.errors.values()
    assert (error.plain.samples, error.given_up) == (1, 1)


# -- errors


def state(model):
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    hooks += [len(p._backward_hooks or ()) for p in model.parameters()]
    values = [t.detach().clone() for t in (*model.parameters(), *model.buffers())]
    return hooks, values, torch.get_rng_state(), functional.scaled_dot_product_attention


@pytest.mark.parametrize("fails_at", [1, REDRAWN])
@pytest.mark.parametrize("way", ["patch", "attention"])
def test_an_error_in_a_candidate_leaves_everything_as_it_was(fails_at, way):
    """At a plain sample, and amid redrawn weights."""
    torch.manual_seed(0)
    model, count = Plain(), [0]

    def failing(*args):
        count[0] += 1
        if count[0] == fails_at:
            raise ArithmeticError("mine")
        return functional.scaled_dot_product_attention(*args[:3])

    def patch(model):
        def hook(*_):
            failing(*3 * (torch.ones(1, 1, 1, 8),))

        model.register_forward_pre_hook(hook)

    candidate = {"patch": patch, "attention": AttentionFunction("failing", failing)}[way]
    before = state(model)
    with shadow(model, None, candidate) as s:
        for i in range(fails_at - 1):
            s(lambda model, x: model(x).square().mean(), batch(i)).backward()
        inside = state(model)
        says = f"^candidate '(patch|failing)' failed at call {fails_at}: ArithmeticError: mine;"
        with pytest.raises(CandidateError, match=says) as raised:
            s(lambda model, x: model(x).square().mean(), batch(fails_at))
        assert isinstance(raised.value.__cause__, ArithmeticError)
        failed = state(model)
        assert failed[0] == inside[0]
        assert same(failed[1], inside[1])
        assert torch.equal(failed[2], inside[2])
        [error] = s.errors.values()
        assert error.given_up == 1
        s(lambda model, x: model(x).square().mean(), batch(fails_at)).backward()  # it goes on
        assert (s.calls, error.given_up) == (fails_at + 1, 1)
    after = state(model)
    assert after[0] == before[0]
    assert after[3] is before[3]


@pytest.mark.parametrize("fails_at", [1, REDRAWN])
def test_an_error_of_the_training_comes_through_as_it_is(fails_at):
    class OwnError(Exception):
        pass

    def broken(model, x):
        model(x)
        raise OwnError("mine")

    model = Plain()
    before = state(model)
    with shadow(model, None, blurred) as s:
        for i in range(fails_at - 1):
            s(lambda model, x: model(x).square().mean(), batch(i)).backward()
        inside = state(model)
        with pytest.raises(OwnError) as raised:
            s(broken, batch(fails_at))
        assert raised.value.__cause__ is raised.value.__context__ is None
        assert same(state(model)[1], inside[1])
    assert state(model)[0] == before[0]


def test_a_candidate_of_nan_cannot_be_told_and_hurts_nothing():
    def broken(model):
        model.out.register_forward_hook(lambda module, args, out: out * float("nan"))

    kept = []
    bare = trace(accumulated, built(), without)
    assert same(bare, trace(accumulated, built(), shadowing(broken, kept=kept)))
    judged = kept[0].judge()
    assert judged.verdict == "cannot tell"
    assert max(t.nonfinite for t in judged.tensors) == judged.samples


def test_outside_of_the_block_one_line_says_so():
    s = shadow(Affine(), None, tripled)
    with pytest.raises(UsageError, match=r"^this shadow is not open"):
        s(Affine.__call__, X)
    with pytest.raises(UsageError, match=r"^no step was sampled"):
        s.judge()
    with s, pytest.raises(UsageError, match="open already"), s:
        pass
    with pytest.raises(UsageError, match=r"^this shadow is not open"):
        s(Affine.__call__, X)


def test_a_shadow_may_be_opened_again_and_goes_on():
    model, s = Affine(), None
    s = shadow(model, None, tripled)
    for n in (1, 2):
        with s:
            s(Affine.__call__, n * X).backward()
    assert [d[2] for d in sums(s)[0]] == [21.0, 84.0]


def test_two_shadows_of_one_model_do_not_see_each_other():
    model = Affine()
    with shadow(model, None, tripled) as a, shadow(model, None, lambda model: None) as b:
        for n in (1, 2, 3):
            a(Affine.__call__, n * X).backward()
            b(Affine.__call__, n * X).backward()
    assert sums(a)[0] == [[84.0 * n * n, 42.0 * n * n, 21.0 * n * n] for n in (1, 2, 3)]
    assert sums(b)[0] == [[0.0, 0.0, 21.0 * n * n] for n in (1, 2, 3)]


@pytest.mark.parametrize("loss", [1.5, torch.ones(3), (torch.ones(()),)])
def test_what_is_no_loss_is_one_line(loss):
    with shadow(Affine(), None, tripled) as s, pytest.raises(UsageError, match="expected a tensor"):
        s(lambda model: loss)


def test_wrong_arguments_are_one_line():
    with pytest.raises(UsageError, match="every is 0"):
        shadow(Affine(), None, tripled, every=0)
    s = collected(lambda loss, factor: loss.backward())
    with pytest.raises(UnknownNameError, match="tripled"):
        s.judge("triple")


def test_a_baseline_is_what_trains():
    """Another attention is in force for the loop; a patch would be another model."""
    half = AttentionFunction("half", lambda q, k, v, *_: 0.5 * v)
    torch.manual_seed(0)
    model = Plain().eval()
    bare = model(batch(0))
    with shadow(model, half, attended(AttentionFunction("third", lambda q, k, v, *_: v / 3))) as s:
        assert not torch.equal(model(batch(0)), bare)
        for i in range(REDRAWN):
            s(lambda model, x: model(x).square().mean(), batch(i)).backward()
    assert torch.equal(model(batch(0)), bare)
    (error,) = s.errors.values()
    assert error.plain.sums("first.weight")[0].all()
    with (
        pytest.raises(UsageError, match="makes another model"),
        shadow(model, patched(tripled), half),
    ):
        pass
    for candidate in (None, tripled):
        with pytest.raises(UsageError, match="expected an attention"):
            shadow(model, half, candidate)
    assert not any(p._backward_hooks for p in model.parameters() if p._backward_hooks is not None)


def test_sharded_models_are_refused():
    class FlatParameter(nn.Parameter):
        pass

    model = Affine()
    model.w = FlatParameter(model.w.data)
    with pytest.raises(UnsupportedError, match="DistributedDataParallel"):
        shadow(model, None, tripled)


def test_several_candidates_at_once():
    model = Affine()
    ways = {"three": variant(tripled), "same": dataclasses.replace(AS_IT_IS, name="same")}
    with Shadow(model, ways) as s:
        for _ in range(REDRAWN):
            s(Affine.__call__, X).backward()
    assert s.errors["three"].plain.sums("w")[0].tolist() == [84.0] * 4
    assert s.judge("same").verdict == "identical"
