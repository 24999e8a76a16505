"""Where readings go: one file each, whose library is imported when the sink is made.

What is made in every process of a training opens nothing before its first reading, which only the
first process writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from roundoff.records import Finding, Reading
from roundoff.registry import lazily

if TYPE_CHECKING:
    from roundoff.live.sinks.jsonl import JsonLines
    from roundoff.live.sinks.run import RunDirectory
    from roundoff.live.sinks.tensorboard import TensorBoard
    from roundoff.live.sinks.terminal import Terminal
    from roundoff.live.sinks.wandb import WandB

__all__ = ["JsonLines", "RunDirectory", "Sink", "TensorBoard", "Terminal", "WandB", "sink_at"]


@runtime_checkable
class Sink(Protocol):
    """Takes the readings of one sampled step after the other, and what stands out in them."""

    def write(self, step: int, readings: Sequence[Reading], findings: Sequence[Finding]) -> None:
        """Take those of `step`, which are safe when this returns."""
        ...

    def close(self) -> None:
        """Take no more; twice does no harm."""
        ...


def sink_at(path: str | Path) -> Sink:
    """The sink of a path: a JSONL file where it ends so, else a run directory."""
    if str(path).endswith(".jsonl"):
        from roundoff.live.sinks.jsonl import JsonLines  # noqa: PLC0415

        return JsonLines(path)
    from roundoff.live.sinks.run import RunDirectory  # noqa: PLC0415

    return RunDirectory(path)


__getattr__, __dir__ = lazily(
    __name__,
    {
        "JsonLines": "jsonl",
        "RunDirectory": "run",
        "TensorBoard": "tensorboard",
        "Terminal": "terminal",
        "WandB": "wandb",
    },
    __all__,
)
