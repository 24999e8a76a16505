"""`text`: a Llama of transformers that learns Python's documentation, byte by byte.

B 16 sequences    N 64 bytes    two layers of 4 heads over 2 key heads, 16 numbers each
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from roundoff.registry import is_installed, require
from roundoff.state.random_states import seeded
from roundoff.workloads.protocol import Task, Workload, generator_of, needs

__all__ = ["TEXT"]

BATCH, LENGTH = 16, 64
WARM_UP = 20
SHAPE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2 * LENGTH,
    "tie_word_embeddings": True,
    "use_cache": False,
}


def _build(init_seed: int, data_seed: int) -> Task:
    transformers: Any = require("transformers", extra="train", purpose="the workload 'text'")
    with seeded(init_seed):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, 1.0, WARM_UP)
    return Task(model, optimizer, lambda step: _batch(data_seed, step), _loss, warm_up, _sample)


@cache
def _text() -> Tensor:
    """All of `pydoc_data.topics`, in the order of its topics, as bytes of ASCII."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    text = "\n".join(topics[name] for name in sorted(topics))
    return torch.frombuffer(bytearray(text.encode("ascii", "replace")), dtype=torch.uint8)


def _batch(data_seed: int, step: int) -> Tensor:
    """B stretches of N + 1 bytes."""
    text = _text()
    last = len(text) - LENGTH - 1
    starts = torch.randint(last, (BATCH, 1), generator=generator_of(data_seed, step))
    return text[starts + torch.arange(LENGTH + 1)].long()


def _loss(model: nn.Module, batch: Tensor) -> Tensor:
    """Cross entropy of the next byte, in nats."""
    batch = batch.to(next(model.parameters()).device)
    logits = model(input_ids=batch[:, :-1]).logits
    return functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


@torch.no_grad()
def _sample(model: nn.Module) -> str:
    """How the model goes on after a first line; the same dice for every model."""
    dice = generator_of(0, 0)
    start = "The for statement\n*****************\n"
    device = next(model.parameters()).device
    said = torch.tensor([list(start.encode())], device=device)
    for _ in range(200):
        logits = model(input_ids=said[:, -LENGTH:]).logits[0, -1].float().cpu()
        drawn = torch.multinomial((logits / 0.7).softmax(-1), 1, generator=dice)
        said = torch.cat([said, drawn[None].to(device)], 1)
    return bytes(int(code) for code in said[0]).decode("ascii")


def _missing() -> str | None:
    if not is_installed("pydoc_data"):
        return "pydoc_data.topics (part of Python's standard library, left out of this Python)"
    return needs("transformers")()


TEXT = Workload(
    "text", "a small Llama learns Python's documentation byte by byte", _build, _missing
)
