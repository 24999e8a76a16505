"""Variants run a model another way, and leave it as it is."""

import pytest
import torch
from torch import nn

from roundoff.errors import KernelError, UsageError
from roundoff.intercept.attention import AttentionFunction
from roundoff.training.variants import AS_IT_IS, autocast, parameters, patched, variant


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))


def doubled(model):
    model[2].register_forward_hook(lambda module, args, out: 2 * out)


X = torch.linspace(-1, 1, 20).view(5, 4)


def test_none_and_a_variant_are_themselves():
    own = model()
    assert variant(None) is AS_IT_IS
    assert variant(AS_IT_IS) is AS_IT_IS
    with AS_IT_IS.entered(own) as entered:
        assert entered is own


def test_a_patch_changes_a_copy():
    own = model()
    before = {k: v.clone() for k, v in own.state_dict().items()}
    with patched(doubled).entered(own) as twin:
        assert twin is not own
        torch.testing.assert_close(twin(X), 2 * model()(X))
    assert not own[2]._forward_hooks
    assert all(torch.equal(v, before[k]) for k, v in own.state_dict().items())


def test_a_patched_copy_has_the_weights_and_the_mode_of_now():
    """Frozen weights, which a teacher's moving average may be, and buffers too."""
    own, way = model(), patched(doubled)
    own[0].weight.requires_grad_(False)
    with way.entered(own) as twin:
        pass
    with torch.no_grad():
        for tensor in (*own.parameters(), *own.buffers()):
            tensor.add_(1)
    own.eval()
    with way.entered(own) as again:
        assert again is twin
        assert torch.equal(again(X), 2 * own(X))
        pairs = zip(again.state_dict().values(), own.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_a_patch_may_return_another_model():
    own = model().eval()

    def wrapped(model):
        return torch.compile(model, backend="eager")

    with patched(wrapped).entered(own) as twin:
        assert list(parameters(twin)) == list(parameters(own))
        assert torch.equal(twin(X), own(X))


def test_a_frozen_weight_may_be_stored_otherwise():
    own = model().eval()
    own[0].weight.requires_grad_(False)

    def stored(model):
        small = (100 * model[0].weight.data).round().to(torch.int8)
        model[0].weight = nn.Parameter(small, requires_grad=False)
        model[0].forward = lambda x: x @ (model[0].weight / 100.0).T + model[0].bias

    with patched(stored).entered(own) as twin:
        assert twin[0].weight.dtype == torch.int8
        assert twin[0].weight.any()
        torch.testing.assert_close(twin(X), own(X), rtol=0.1, atol=0.1)


def test_a_copy_without_the_models_weights_is_refused():
    def shorter(model):
        model[2] = nn.Linear(6, 3)

    with (
        pytest.raises(KernelError, match=r"2\.weight should be \(2, 6\), but has \(3, 6\)"),
        patched(shorter).entered(model()),
    ):
        pass


def test_a_patch_that_rounds_the_weights_once_is_refused():
    def rounded(model):
        with torch.no_grad():
            model[2].weight.copy_(model[2].weight.bfloat16())

    own = model()
    with (
        pytest.raises(KernelError, match=r"other values into 2\.weight"),
        patched(rounded).entered(own),
    ):
        pass
    with patched(lambda model: model.bfloat16()).entered(own) as twin:  # rounds at every entry
        assert torch.equal(twin[2].weight, own[2].weight.bfloat16())


def test_tied_weights_stay_tied_in_the_copy():
    own = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    own[1].weight = own[0].weight
    with patched(lambda model: None).entered(own) as twin:
        assert twin[1].weight is twin[0].weight


@pytest.mark.parametrize(("format", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_autocast(format, dtype):
    with autocast(format).entered(model()) as entered:
        assert entered(X).dtype == dtype
    assert not torch.is_autocast_enabled("cpu")
    with pytest.raises(UsageError, match="expected bf16, fp16 or fp32"):
        autocast("fp8")


def test_attention_is_another_one_and_leaves_no_hooks():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = torch.randn(1, 5, 8)
    zero = AttentionFunction("zero", lambda q, k, v, mask, causal, scale: 0 * v)
    before = layer(x)
    with variant(zero).entered(layer) as entered:
        assert entered is layer
        assert not torch.equal(layer(x), before)
    assert torch.equal(layer(x), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in layer.modules())
    assert variant("fa2@bf16").name == "fa2@bf16"


def test_a_module_called_module_keeps_its_name():
    """Else `module.w` and `w` of one model would be taken for one weight."""
    own = nn.Module()
    own.w = nn.Parameter(torch.ones(2))
    own.module = nn.Module()
    own.module.w = nn.Parameter(torch.zeros(2))
    assert list(parameters(own)) == ["w", "module.w"]
    assert list(parameters(torch.compile(own))) == ["w", "module.w"]
