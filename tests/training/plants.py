"""Planted candidates, of which it is known whether they are noise or bias."""

import torch
from torch import Tensor, nn

from roundoff.intercept.attention import AttentionFunction
from roundoff.training.variants import Variant, attended, patched

HALF = 2.0**-9  # half a bf16 step, relative to the power of two below


def exact(q, k, v, mask, causal, scale):
    return nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=True
    )


class _Straight(torch.autograd.Function):
    """Rounds on the way forward; gradients pass."""

    @staticmethod
    def forward(ctx, x, rounded):
        return rounded(x)

    @staticmethod
    def backward(ctx, upstream):
        return upstream, None


def output(name, rounded) -> Variant:
    """Attention in fp32 whose output goes through `rounded`."""

    def compute(*call):
        return _Straight.apply(exact(*call), rounded)

    return attended(AttentionFunction(name, compute))


def nearest(x: Tensor) -> Tensor:
    return x.bfloat16().float()


def truncated(x: Tensor) -> Tensor:
    return (x.contiguous().view(torch.int32) & -(1 << 16)).view(torch.float32)


def gain(size: float) -> Variant:
    def compute(*call):
        return exact(*call) * (1 + size)

    return attended(AttentionFunction(f"gain {size:g}", compute))


def noise(seed: int) -> Variant:
    """Zero-mean noise with the RMS of the truncation of each output."""
    generator = torch.Generator().manual_seed(seed)

    def rounded(x):
        rms = (truncated(x) - x).square().mean().sqrt()
        return x + rms * torch.randn(x.shape, generator=generator)

    return output("noise", rounded)


def weights(rounded) -> Variant:
    """All weights through `rounded` at every entry, as a model with other storage has them."""

    def patch(model: nn.Module) -> None:
        def hook(*_):
            for p in model.parameters():
                p.data.copy_(rounded(p.data))

        model.register_forward_pre_hook(hook)

    return patched(patch, f"weights {rounded.__name__}")


def planted(seed: int) -> dict[str, tuple[Variant, str]]:
    """Variants by name, and the verdict that is right."""
    return {
        "truncated": (output("truncated", truncated), "biased"),
        "tenth": (output("tenth", lambda x: x + (truncated(x) - x) / 10), "biased"),
        "nearest": (output("nearest", nearest), "noise"),
        "noise": (noise(seed), "noise"),
        "weights nearest": (weights(nearest), "not biased"),
        "weights truncated": (weights(truncated), "biased"),
    }
