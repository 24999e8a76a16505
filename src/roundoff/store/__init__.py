"""Run directories: append-only lines, several writers, readable by SQL and pandas."""

from roundoff.store.run import Run
from roundoff.store.writer import Writer

__all__ = ["Run", "Writer"]
