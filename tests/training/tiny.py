"""A workload of a user's: a tiny attention model with dropout that learns to count."""

import torch
from torch import nn
from torch.nn import functional


class Tiny(nn.Module):
    def __init__(self, dropout=0.1):
        super().__init__()
        self.embed = nn.Embedding(16, 16)
        self.qkv = nn.Linear(16, 48)
        self.drop = nn.Dropout(dropout)
        self.out = nn.Linear(16, 16)

    def forward(self, tokens):
        x = self.embed(tokens)
        q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.out(x + self.drop(y.transpose(1, 2).flatten(-2)))


def loss(model, tokens):
    following = (tokens + 1) % 16
    return functional.cross_entropy(model(tokens).flatten(0, 1).float(), following.flatten())


def build(data_seed=0):
    model = Tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def batch(step):
        generator = torch.Generator().manual_seed(1000 * data_seed + step)
        return torch.randint(16, (8, 12), generator=generator)

    return model, optimizer, batch, loss


def doubled(model):
    """A patch: the output layer computes in float64."""
    linear = model.out

    def forward(x):
        weight, bias = linear.weight.double(), linear.bias.double()
        return functional.linear(x.double(), weight, bias).float()

    linear.forward = forward


def replacing(model):
    """A patch that gives the model parameters of its own."""
    model.out = nn.Linear(16, 16)


def attention(q, k, v):
    """An attention of a user's."""
    return functional.scaled_dot_product_attention(q, k, v) * 0.999
