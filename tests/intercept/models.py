"""Small models with attention, by torch's function and by transformers."""

import pytest
import torch
from torch import nn
from torch.nn import functional

TORCH = functional.scaled_dot_product_attention


def draw(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


class Plain(nn.Module):
    """Calls torch's function directly, in the manner of small GPTs."""

    def __init__(self, width=16, heads=2, *, seed=0, **how):
        super().__init__()
        self.heads, self.how = heads, how
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.qkv, self.last = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, n, width = x.shape
        q, k, v = (y.view(b, n, self.heads, -1).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        out = functional.scaled_dot_product_attention(q, k, v, **self.how)
        return self.last(out.transpose(1, 2).reshape(b, n, width))


def llama(**config):
    transformers = pytest.importorskip("transformers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **config,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(config)


def gradients(model, output):
    model.zero_grad()
    output.sum().backward()
    return [p.grad.clone() for p in model.parameters()]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
