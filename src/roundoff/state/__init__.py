"""State: capture and restore of everything that a training step depends on.

random_states.py  RandomStates, and blocks that draw from a seed or as if they had not drawn
snapshot.py       Snapshot: model, optimizer, scheduler, scaler, random states, step
processes.py      several processes, and the model inside their wrapper
wire.py           nested state as JSON and named tensors, without pickles
wrappers.py       names of weights without what torch.compile and others put into them
"""

from roundoff.state.snapshot import Snapshot

__all__ = ["Snapshot"]
