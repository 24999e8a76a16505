"""What a model's attention becomes inside `swapped`, and that nothing of it leaks."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from roundoff.errors import KernelError, UnknownNameError, UnsupportedError, UsageError
from roundoff.intercept.spy import spy
from roundoff.intercept.swap import AttentionFunction, attention_function, swapped
from roundoff.operators.attention.api import emulate, golden

from .models import TORCH, Plain, draw, gradients, llama, same

KERNELS = {
    "torch-math": "aten::_scaled_dot_product_attention_math",
    "torch-cpu-flash": "aten::_scaled_dot_product_flash_attention_for_cpu",
}


class TestWhatRuns:
    @pytest.mark.parametrize("name", KERNELS)
    def test_the_spy_sees_the_kernel_and_no_other(self, name):
        model, x = Plain(is_causal=True), draw(2, 8, 16)
        with swapped(model, name) as calls:
            for _ in range(2):
                out, events = spy(lambda: model(x))
                _, behind = spy(out.sum().backward)
        assert calls.count == 2
        (other,) = set(KERNELS) - {name}
        assert KERNELS[name] in events
        assert KERNELS[other] not in events
        assert KERNELS[name] in behind
        assert KERNELS[other] not in behind

    def test_a_recipe_is_what_emulate_gives(self):
        model, x = Plain(is_causal=True), draw(2, 8, 16)
        with swapped(model, "fa2"):
            found = model(x)
            grads = gradients(model, found)
        q, k, v = (y.view(2, 8, 2, 8).transpose(1, 2) for y in model.qkv(x).chunk(3, -1))
        out = emulate("fa2", q, k, v, causal=True).out
        expected = model.last(out.transpose(1, 2).reshape(2, 8, 16))
        assert torch.equal(found, expected)
        assert same(grads, gradients(model, expected))

    def test_torch_itself_swapped_in_changes_no_bit(self):
        model, x = Plain(is_causal=True), draw(2, 8, 16)
        plain = model(x)
        before = gradients(model, plain)
        with swapped(model, "torch-cpu-flash"):
            found = model(x)
            grads = gradients(model, found)
        assert torch.equal(found, plain)
        assert same(grads, before)

    def test_never_called(self):
        with (
            pytest.raises(KernelError, match=r"'fa2' stood in .* of Linear, but no .*AttentionInt"),
            swapped(nn.Linear(2, 2), "fa2"),
        ):
            pass


class TestDoors:
    @pytest.mark.parametrize("name", ["torch-cpu-flash", "fa2"])
    @pytest.mark.parametrize("implementation", ["sdpa", "eager"])
    def test_transformers_causal_text(self, name, implementation):
        model = llama(attn_implementation=implementation)
        ids = torch.arange(24).view(2, 12)
        plain = model(input_ids=ids).logits
        before, config = gradients(model, plain), model.config
        with swapped(model, name) as calls:
            found = model(input_ids=ids).logits
            grads = gradients(model, found)
        assert calls.count == 2
        assert model.config is config
        assert config._attn_implementation == implementation
        torch.testing.assert_close(found, plain)
        torch.testing.assert_close(grads, before)
        assert torch.equal(model(input_ids=ids).logits, plain)

    def test_transformers_padding_mask(self):
        model, ids = llama(), torch.arange(24).view(2, 12)
        mask = torch.ones_like(ids)
        mask[1, 8:] = 0
        plain = model(input_ids=ids, attention_mask=mask).logits
        with swapped(model, "fa2"):
            found = model(input_ids=ids, attention_mask=mask).logits
        torch.testing.assert_close(found, plain)

    def test_transformers_tables_are_as_before(self):
        from transformers.masking_utils import AttentionMaskInterface
        from transformers.modeling_utils import AttentionInterface

        tables = [dict(t._global_mapping) for t in (AttentionInterface, AttentionMaskInterface)]
        model = llama()
        with swapped(model, "fa2"):
            model(input_ids=torch.arange(4)[None])
        after = [dict(t._global_mapping) for t in (AttentionInterface, AttentionMaskInterface)]
        assert tables == after

    def test_two_models_of_one_configuration(self):
        first, ids = llama(), torch.arange(8)[None]
        second = type(first)(first.config)
        assert second.config is first.config
        plain = second(input_ids=ids).logits
        with swapped(first, "fa2@bf16") as calls:
            first(input_ids=ids)
            assert torch.equal(second(input_ids=ids).logits, plain)
        assert calls.count == 2

    def test_diffusers_processors(self):
        pytest.importorskip("diffusers")
        from diffusers.models.attention_processor import Attention, AttnProcessor

        model = Attention(16, heads=2, dim_head=8, processor=AttnProcessor())
        x = draw(2, 6, 16)
        plain, processor = model(x), model.processor
        with swapped(model, "fa2") as calls:
            found = model(x)
        assert calls.count == 1
        assert model.processor is processor
        torch.testing.assert_close(found, plain)

    def test_diffusers_back_ends(self):
        pytest.importorskip("diffusers")
        from diffusers.models.transformers.transformer_flux import FluxAttention

        model = FluxAttention(16, heads=2, dim_head=8)
        model.processor._attention_backend = "_native_math"
        x = draw(2, 6, 16)
        plain = model(x)
        with swapped(model, "fa2@bf16") as calls:
            found = model(x)
        assert calls.count == 1
        assert model.processor._attention_backend == "_native_math"
        assert 0 < (found - plain).abs().max() < 2**-6

    @pytest.mark.parametrize("training", [True, False])
    def test_torchs_own_encoder_has_no_way_around(self, training):
        layer = nn.TransformerEncoderLayer(16, 2, dropout=0.0, batch_first=True)
        model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training)
        x = draw(2, 6, 16)
        with torch.set_grad_enabled(training), swapped(model, "fa2@bf16") as calls:
            found = model(x)
            (again, *_), events = spy(lambda: [model(x)])
        assert calls.count == 4
        assert torch.equal(found, again)
        assert not {*KERNELS.values(), "aten::_transformer_encoder_layer_fwd"} & set(events)
        assert torch.backends.mha.get_fastpath_enabled()

    @pytest.mark.parametrize("make", [lambda: Plain(is_causal=True), llama])
    def test_checkpoints_run_again_under_the_same_attention(self, make):
        from torch.utils.checkpoint import checkpoint

        model = make()
        text = hasattr(model, "config")
        x = torch.arange(12)[None] if text else draw(2, 8, 16)
        call = (lambda: model(x).logits) if text else lambda: model(x)
        with swapped(model, "fa2@bf16"):
            grads = gradients(model, call())
        with swapped(model, "fa2@bf16") as calls:
            if text:
                old = model.gradient_checkpointing_enable
                getattr(model, "activation_checkpointing_enable", old)()
                model.train()
                again = gradients(model, call())
            else:
                again = gradients(model, checkpoint(model, x, use_reentrant=False))
        assert calls.count == (4 if text else 2)
        assert same(grads, again)

    @pytest.mark.slow
    # The warning is torch's own, where a graph breaks.
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
    @pytest.mark.parametrize("kind", ["plain", "text", "in place", "outside"])
    def test_compiled_models(self, kind):
        """A wrapper, one of transformers, compiled in place; and one that is compiled around."""
        model, x = (llama(), torch.arange(12)[None]) if kind == "text" else (
            Plain(is_causal=True), draw(2, 8, 16))  # fmt: skip
        with swapped(model, "fa2@bf16"):
            eager = model(x)
        compiled = model if kind == "in place" else torch.compile(model, backend="eager")
        if kind == "in place":
            model.compile(backend="eager")

        def run():
            out = compiled(x)
            return out.logits if kind == "text" else out

        eager = eager.logits if kind == "text" else eager
        before = run()
        with swapped(model if kind == "outside" else compiled, "fa2@bf16") as calls:
            found = run()
            run().sum().backward()
        assert calls.count == (4 if kind == "text" else 2)
        torch.testing.assert_close(found, eager, rtol=0, atol=2**-20)
        assert (found - before).abs().max() > 2**-16
        assert torch.equal(run(), before)


class TestNothingLeaks:
    def test_arms_that_alternate(self):
        models = {name: Plain(is_causal=True) for name in ("fa2@bf16", "torch-math", "plain")}
        x = draw(2, 8, 16)
        alone = {}
        for name in ("fa2@bf16", "torch-math"):
            with swapped(models[name], name):
                alone[name] = models[name](x)
        alone["plain"] = models["plain"](x)
        with swapped(models["fa2@bf16"], "fa2@bf16") as a, swapped(models["torch-math"],
                                                                   "torch-math") as b:  # fmt: skip
            for _ in range(2):
                for name, model in models.items():
                    assert torch.equal(model(x), alone[name]), name
        assert (a.count, b.count) == (2, 2)
        assert not torch.equal(alone["fa2@bf16"], alone["plain"])

    def test_the_end_and_an_error_put_everything_back(self):
        model, x = Plain(), draw(1, 4, 16)
        plain = model(x)
        with pytest.raises(ValueError, match="unpack"), swapped(model, "fa2@bf16"):
            model(x[0, 0])
        assert functional.scaled_dot_product_attention is TORCH
        assert not model._forward_hooks
        assert torch.equal(model(x), plain)

    def test_of_two_for_one_model_the_inner_holds(self):
        model, x = Plain(is_causal=True), draw(2, 8, 16)
        with swapped(model, "fa2@bf16") as outer:
            coarse = model(x)
            with swapped(model, "fa2") as inner:
                fine = model(x)
            assert torch.equal(model(x), coarse)
        assert (outer.count, inner.count) == (2, 1)
        assert not torch.equal(fine, coarse)

    def test_a_hook_of_the_users_that_fails(self):
        model, x = Plain(), draw(1, 4, 16)
        hook = model.last.register_forward_pre_hook(lambda *_: 1 / 0)
        with swapped(model, "fa2@bf16") as calls:
            with pytest.raises(ZeroDivisionError):
                model(x)
            hook.remove()
            found, q = model(x), draw(1, 1, 8, 8)
            assert torch.equal(functional.scaled_dot_product_attention(q, q, q), TORCH(q, q, q))
        assert calls.count == 2
        assert (found - model(x)).abs().max() > 0
        assert torch.backends.mha.get_fastpath_enabled()

    def test_outside_of_the_model_torch_is_torch(self):
        model, q = Plain(), draw(1, 1, 8, 8)
        with swapped(model, "fa2@bf16") as calls:
            model(draw(1, 4, 16))
            assert torch.equal(functional.scaled_dot_product_attention(q, q, q), TORCH(q, q, q))
        assert calls.count == 1


class TestAttentionFunction:
    @pytest.mark.parametrize("name", ["fa2", "torch-math", "torch-cpu-flash"])
    @pytest.mark.parametrize(
        "mask",
        [
            None,
            torch.tensor([True, True, False, True, True]),
            draw(6, 5, seed=5),
            draw(3, 1, 1, 5, seed=6),
            draw(1, 4, 6, 5, seed=7) > -0.5,
        ],
        ids=["none", "keys", "bias", "batches", "heads"],
    )
    def test_cross_attention_of_shared_heads(self, name, mask):
        q, k, v = draw(3, 4, 6, 8), draw(3, 2, 5, 8, seed=1), draw(3, 2, 5, 8, seed=2)
        leaves = [x.requires_grad_() for x in (q, k, v)]
        found = attention_function(name)(q, k, v, mask=mask, scale=0.3)
        grads = torch.autograd.grad(found.square().sum(), leaves)
        more = None if mask is None else mask.expand(3, 4, 6, 5)
        plain = TORCH(q, k, v, attn_mask=more, scale=0.3, enable_gqa=True)
        torch.testing.assert_close(found, plain)
        torch.testing.assert_close(grads, torch.autograd.grad(plain.square().sum(), leaves))

    def test_a_storage_format_rounds_on_the_way_in_and_out(self):
        q, dout = draw(1, 2, 8, 16).requires_grad_(), draw(1, 2, 8, 16, seed=1)
        found = attention_function("fa2@bf16")(q, q, q, causal=True)
        found.backward(dout)
        stored = q.detach().bfloat16().requires_grad_()
        out = emulate("fa2", stored, stored, stored, causal=True).out
        out.backward(dout.bfloat16())
        assert torch.equal(found, out.float())
        # autograd adds the gradients of three casts, in float32
        assert q.grad.dtype == torch.float32
        torch.testing.assert_close(q.grad, stored.grad.float(), rtol=2**-7, atol=2**-6)

    @pytest.mark.parametrize("name", ["fa2", "fa2@bf16", "torch-math", "torch-cpu-flash"])
    def test_autocast_changes_no_bit(self, name):
        leaves = [draw(1, 2, 8, 16, seed=s).requires_grad_() for s in range(3)]
        function = attention_function(name)
        plain = function(*leaves, causal=True)
        grads = torch.autograd.grad(plain.square().sum(), leaves)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = function(*leaves, causal=True)
            again = torch.autograd.grad(found.square().sum(), leaves)
        assert found.dtype == torch.float32
        assert torch.equal(found, plain)
        assert same(again, grads)

    def test_dtypes_that_autocast_mixed_meet_in_its_own(self):
        q, k = draw(1, 1, 4, 8), draw(1, 1, 4, 8, seed=1).bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = attention_function("fa2")(q, k, k)
        assert torch.equal(found, emulate("fa2", q.bfloat16(), k, k).out.float())
        with pytest.raises(UsageError, match="expected one dtype"):
            attention_function("fa2")(q, k, k)

    def test_a_name_of_both_is_the_kernel_unless_the_recipe_is_meant(self):
        q = draw(1, 1, 8, 8)
        out, events = spy(lambda: attention_function("torch-math")(q, q, q))
        assert KERNELS["torch-math"] in events
        out, events = spy(lambda: attention_function("torch-math", kind="recipe")(q, q, q))
        assert KERNELS["torch-math"] not in events
        assert torch.equal(out, emulate("torch-math", q, q, q).out)

    def test_a_function_of_the_users(self, tmp_path):
        (tmp_path / "mine.py").write_text(
            "import torch\n"
            "def attention(q, k, v, causal=False):\n"
            "    s = torch.einsum('bnhd,bmhd->bhnm', q, k) * q.shape[-1] ** -0.5\n"
            "    if causal:\n"
            "        s = s.masked_fill(torch.ones_like(s).triu(1).bool(), float('-inf'))\n"
            "    return torch.einsum('bhnm,bmhd->bnhd', s.softmax(-1), v)\n"
            "def stuck(q, k, v): return q.detach()\n"
            "def short(q, k, v): return q[:, :, 1:]\n"
            "def broken(q, k, v): return 1 / 0\n"
        )
        q = draw(1, 2, 8, 4).requires_grad_()
        mine = attention_function(f"{tmp_path}/mine.py:attention", layout="bshd")
        found = mine(q, q, q, causal=True)
        (grad,) = torch.autograd.grad(found.square().sum(), q)
        exact = golden(q, q, q, causal=True).out.float()
        torch.testing.assert_close(found.detach(), exact)
        plain = TORCH(q, q, q, is_causal=True)
        torch.testing.assert_close(grad, torch.autograd.grad(plain.square().sum(), q)[0])
        with pytest.raises(UnsupportedError, match="does not take mask boolean"):
            mine(q, q, q, mask=torch.ones(8, 8).bool())
        with pytest.raises(KernelError, match="no gradient flows"):
            attention_function(f"{tmp_path}/mine.py:stuck")(q, q, q).sum().backward()
        with pytest.raises(KernelError, match=r"returned out of shape \(1, 2, 7, 4\)"):
            attention_function(f"{tmp_path}/mine.py:short")(q, q, q)
        with pytest.raises(KernelError, match="raised ZeroDivisionError: division by zero"):
            attention_function(f"{tmp_path}/mine.py:broken")(q, q, q)

    def test_a_recipe_without_a_backward_pass(self):
        from roundoff.operators.attention.catalogue import RECIPES

        name = next(n for n, recipe in RECIPES.items() if recipe.backward is None)
        function, q = attention_function(name, kind="recipe"), draw(1, 1, 8, 16)
        assert function(q, q, q).isfinite().all()
        with pytest.raises(UnsupportedError, match="has no backward pass"):
            function(q.requires_grad_(), q, q)

    @pytest.mark.parametrize(
        ("name", "error", "says"),
        [
            ("fa22", UnknownNameError, "did you mean 'fa2'"),
            ("fa2@bf15", UnknownNameError, "did you mean 'bf16'"),
            ("fa2@e4m3fn", UsageError, "stored in bf16, fp16, fp32 or fp64"),
            ("torch-softmax", UsageError, "computes softmax"),
        ],
    )
    def test_bad_names(self, name, error, says):
        with pytest.raises(error, match=says):
            attention_function(name)

    def test_a_kernel_that_takes_another_format(self):
        q = draw(1, 1, 4, 8)
        with pytest.raises(UnsupportedError, match=r"does not take format fp32 \(takes bf16, fp16"):
            attention_function("torch-math-reduced")(q, q, q)
        assert isinstance(attention_function("torch-math-reduced@bf16"), AttentionFunction)

    def test_dropout_is_refused(self):
        model = Plain(dropout_p=0.5)
        with pytest.raises(UnsupportedError, match="dropout"), swapped(model, "fa2"):
            model(draw(1, 4, 16))
