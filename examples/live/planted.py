"""What the examples train: the Llama of the workload `text`, with one bad head of attention.

Head 2 of layer 1 rounds its P to e4m3fn from a step on. All else is torch's own attention.
"""

import argparse

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from roundoff.workloads import WORKLOADS

LAYER, HEAD = 1, 2
HEADS_A_KEY_HEAD = 2


class Planted:
    """An attention for transformers; `step` is set by whoever trains, `start` None is never."""

    def __init__(self, start: int | None) -> None:
        self.start, self.step = start, 0

    def __call__(self, module, query, key, value, attention_mask, scaling=None, **more):
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **more
        )
        if module.layer_idx == LAYER and self.start is not None and self.step >= self.start:
            k, v = (x[:, HEAD // HEADS_A_KEY_HEAD] for x in (key, value))
            s = query[:, HEAD] @ k.transpose(-1, -2) * scaling
            seen = torch.ones(s.shape[-2:], dtype=torch.bool).tril()
            p = s.masked_fill(~seen, float("-inf")).softmax(-1)
            rounded = p.detach().to(torch.float8_e4m3fn).to(p.dtype)
            out = out.clone()  # [batch, length, heads, head_dim]
            out[:, :, HEAD] = (p + (rounded - p).detach()) @ v
        return out, None


def build(start):
    """The task, with the planted attention in its model; and what plants it."""
    planted = Planted(start)
    AttentionInterface.register("planted", planted)
    task = WORKLOADS["text"].build(0, 0)
    task.model.set_attn_implementation("planted")
    return task, planted


def options():
    """How long to train, from which step on the head is bad, and how often to look."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--start", type=int, default=100)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--sound", action="store_true", help="plant nothing")
    given = parser.parse_args()
    for name, least in {"steps": 1, "start": 0, "every": 1}.items():
        if (value := getattr(given, name)) < least:
            parser.exit(2, f"{parser.prog}: --{name} is {value}; expected at least {least}\n")
    return given.steps, None if given.sound else given.start, given.every


def say(monitor):
    """How much was found; what it is, the monitor's logger has said at its step."""
    print(f"{len(monitor.findings)} found in {monitor.step} steps")
