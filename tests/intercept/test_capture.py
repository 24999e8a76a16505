"""What `captured` keeps of a model's attention, and that it changes nothing of the model."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from roundoff.errors import KernelError
from roundoff.intercept.capture import captured
from roundoff.intercept.swap import swapped
from roundoff.workloads import load_workload

from .models import TORCH, Plain, draw, gradients, llama, same


def test_a_plain_model():
    model, x = Plain(is_causal=True, scale=0.3), draw(2, 8, 16)
    q, k, v = (y.view(2, 8, 2, 8).transpose(1, 2) for y in model.qkv(x).chunk(3, -1))
    plain = model(x)
    before = gradients(model, plain)
    with captured(model) as calls:
        found = model(x)
    assert torch.equal(found, plain)
    assert same(gradients(model, found), before)
    (call,) = calls
    assert same((call.q, call.k, call.v), (q, k, v))
    assert not call.q.requires_grad
    assert (call.place, call.mask, call.causal, call.scale) == ("", None, True, 0.3)


def test_the_workload_text():
    task = load_workload("text").build(0, 0)
    model, batch = task.model, task.batch(3)
    config, hooks = model.config, [*model.modules()]
    loss = task.loss(model, batch)
    before = gradients(model, loss)
    with captured(model) as calls:
        again = task.loss(model, batch)
    assert torch.equal(again, loss)
    assert same(gradients(model, again), before)
    assert [call.place for call in calls] == [f"model.layers.{i}.self_attn" for i in (0, 1)]
    for call in calls:
        assert call.q.shape == (16, 4, 64, 16)
        assert call.k.shape == call.v.shape == (16, 2, 64, 16)
        assert (call.mask, call.causal, call.scale) == (None, True, 0.25)
    assert model.config is config
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in hooks)
    assert functional.scaled_dot_product_attention is TORCH


def test_the_output_follows_from_what_was_captured():
    layer, x = llama().model.layers[1].self_attn, draw(2, 8, 32)
    cos, sin = torch.ones(1, 8, 8), torch.zeros(1, 8, 8)
    with captured(layer) as calls:
        found, _ = layer(x, position_embeddings=(cos, sin), attention_mask=None)
    (call,) = calls
    out = TORCH(call.q, call.k, call.v, is_causal=call.causal, scale=call.scale, enable_gqa=True)
    assert torch.equal(layer.o_proj(out.transpose(1, 2).reshape(2, 8, 32)), found)


def test_a_padding_mask_is_kept():
    model, ids = llama(), torch.arange(24).view(2, 12)
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    with captured(model) as calls:
        model(input_ids=ids, attention_mask=mask)
    for call in calls:
        assert not call.causal
        visible = torch.ones(12, 12).tril().bool() & mask.bool()[:, None, None]
        assert torch.equal(call.mask[1, 0, :8], visible[1, 0, :8])


def test_dropout_stays():
    model, x = Plain(dropout_p=0.5), draw(2, 8, 16)
    torch.manual_seed(0)
    plain = model(x)
    torch.manual_seed(0)
    with captured(model):
        assert torch.equal(model(x), plain)


@pytest.mark.parametrize("make", [lambda: Plain(is_causal=True), llama])
@pytest.mark.parametrize("inside", [True, False])
def test_beside_a_swap_the_swapped_attention_computes(make, inside):
    model = make()
    x = draw(2, 8, 16) if isinstance(model, Plain) else torch.arange(12)[None]

    def run():
        out = model(x)
        return out if isinstance(out, torch.Tensor) else out.logits

    with captured(model) as own:
        plain = run()
    with swapped(model, "fa2@bf16"):
        coarse = run()
    contexts = [lambda: swapped(model, "fa2@bf16"), lambda: captured(model)]
    first, second = contexts if inside else contexts[::-1]
    with first() as a, second() as b:
        found = run()
    calls = b if inside else a
    assert torch.equal(found, coarse)
    assert not torch.equal(found, plain)
    assert len(calls) == len(own)
    assert torch.equal(calls[0].q, own[0].q)


def test_another_models_calls_are_not_kept():
    model, other, x = Plain(), Plain(seed=1), draw(1, 4, 16)
    with captured(model) as calls:
        other(x)
        model(x)
        functional.scaled_dot_product_attention(*(draw(1, 1, 4, 8),) * 3)
    assert len(calls) == 1


def test_a_later_change_in_place_does_not_reach_what_is_kept():
    model, x = Plain(), draw(1, 4, 16)
    with captured(model) as calls, torch.no_grad():
        model(x)
        kept = calls[0].q.clone()
        for p in model.parameters():
            p.zero_()
        model(x)
    assert torch.equal(calls[0].q, kept)
    assert not calls[1].q.any()


@pytest.mark.parametrize("model", [nn.Linear(2, 2), "eager"])
def test_nothing_seen_is_an_error(model):
    if model == "eager":
        model, x = llama(attn_implementation="eager"), torch.arange(4)[None]
    else:
        x = torch.ones(2)
    says = "was captured; expected calls of torch's"
    with pytest.raises(KernelError, match=says), captured(model):
        model(x)
    assert functional.scaled_dot_product_attention is TORCH
