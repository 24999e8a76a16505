"""Where cells run: local worker processes, one shard of many, or anybody's executor."""

from roundoff.executors.local import LocalExecutor
from roundoff.executors.schedule import run_tasks, shard

__all__ = ["LocalExecutor", "run_tasks", "shard"]
