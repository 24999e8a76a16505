"""A monitor in a loop of your own: three lines of it.

python examples/live/plain_loop.py
"""

import torch
from planted import build, options, say

import roundoff


def train(steps=160, start=100, every=5):
    task, planted = build(start)
    watch = [roundoff.Watch(of="attention", probes=("deviation",), every=every)]
    with roundoff.Monitor(task.model, task.optimizer, watch=watch) as monitor:
        for step in range(steps):
            planted.step = step
            loss = task.loss(task.model, task.batch(step))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(task.model.parameters(), 1.0)
            task.optimizer.step()
            task.optimizer.zero_grad()
            task.scheduler.step()
    return monitor


if __name__ == "__main__":
    say(train(*options()))
