"""Reaching into running code.

    spy.py              what really ran
    swap.py             lets the attention of a model be another
    capture.py          keeps what the attention of a model is called with
    doors.py            where it enters: torch, transformers, diffusers
    running.py          which model runs
    attention.py        the attention that a name means
    kernel_function.py  a kernel as a function that trains

Nothing stays changed when a context has ended.
"""
