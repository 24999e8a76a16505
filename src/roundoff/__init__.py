"""roundoff: how far an optimization moves the numbers, where from, and whether it matters."""

__version__ = "0.1.0.dev0"
