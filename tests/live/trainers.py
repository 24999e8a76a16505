"""What the tests of trainers train, all that a training leaves, and the examples."""

import importlib.util
import random
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from roundoff.live.watch import Watch
from roundoff.state.random_states import RandomStates
from roundoff.workloads import WORKLOADS

STEPS = 4
KINDS = ("parameters", "gradients", "updates", "moments", "activations", "attention")
ALL = [Watch(of=kind, every=1) for kind in KINDS[:-1]]
ALL.append(Watch(of="attention", every=1, layers=2))
EXAMPLES = Path(__file__).parents[2] / "examples" / "live"


def llama():
    """A tiny one, with dropout, so that whoever draws a number changes its weights."""
    transformers = __import__("transformers")
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32, use_cache=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.model.embed_tokens.register_forward_hook(
        lambda module, args, out: functional.dropout(out, 0.1, module.training)
    )
    return model


def rows(batches):
    """Of each batch of the workload two stretches."""
    batch = WORKLOADS["text"].build(0, 0).batch
    return [row for step in range(batches) for row in batch(step)[:2, :24]]


def left(model, losses):
    """All that a training leaves: weights, losses, random states."""
    states = RandomStates.here()
    assert len(losses) >= STEPS
    return [
        *(p.detach().clone() for p in model.parameters()),
        torch.tensor(losses, dtype=torch.float64),
        states.torch,
        torch.tensor(np.asarray(states.numpy[1], dtype=np.int64)),
        torch.tensor(states.numpy[2]),
        torch.tensor(states.python[1]),
    ]


def untouched(model):
    """Whether no hook of a monitor is left."""
    hooks = [
        (name, hook)
        for name, module in model.named_modules()
        for hooks in (module._forward_pre_hooks, module._forward_hooks)
        for hook in hooks.values()
    ]
    return all("roundoff" not in getattr(hook, "__module__", "") for _, hook in hooks)


def example(name, monkeypatch):
    """The module of an example, as its script sees it."""
    monkeypatch.syspath_prepend(EXAMPLES)
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules.pop("planted", None)
    return module


def finds_the_planted_head(train):
    """Whether an example names the head, and nothing else, and nothing where nothing is planted."""
    found = train(12, 4, 2).findings
    assert [(f.what, f.head) for f in found] == [("deviation", 2)]
    assert found[0].name.endswith("model.layers.1.self_attn")
    assert 4 < found[0].step < 12
    assert train(12, None, 2).findings == []
