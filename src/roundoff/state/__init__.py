"""State: capture and restore of everything that a training step depends on.

snapshot.py   Snapshot: model, optimizer, scheduler, scaler, random states, step
wire.py       nested state as JSON and named tensors, without pickles
"""

from roundoff.state.snapshot import Snapshot

__all__ = ["Snapshot"]
