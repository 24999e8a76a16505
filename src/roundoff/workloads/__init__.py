"""Models and data to train: text, text-to-image, and the user's own.

    protocol.py   Task, Workload, Pictures and the table of workloads
    text.py       a small Llama on Python's own documentation
    glyphs.py     a diffusion transformer that draws captioned letters
    user.py       any `module:function` of the user's

Real libraries and real data, and nothing is downloaded. `WORKLOADS` knows the names without
importing a library.
"""

from roundoff.workloads.protocol import WORKLOADS, Pictures, Task, Workload
from roundoff.workloads.user import load_workload

__all__ = ["WORKLOADS", "Pictures", "Task", "Workload", "load_workload"]
