"""The state of a repeat on the disk, so that a killed one goes on bit for bit.

    <folder>/step-<n>/<number>-<arm>.safetensors   a snapshot of each arm
                      direct.safetensors           the direct errors so far
                      notes.json                   what was measured so far, and the counters

Each is checked by a hash: a snapshot holds its own, notes.json its own and that of
the direct errors. A state is written beside the last one, which is removed when
the new one is whole.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from roundoff.errors import RoundoffError, RunError
from roundoff.metrics.direct import DirectError
from roundoff.state import Snapshot
from roundoff.store.disk import disk_errors, replace_file
from roundoff.store.json import digest, dumps, loads

if TYPE_CHECKING:
    from roundoff.training.lab import Lab
    from roundoff.training.runner import Runner

__all__ = ["load_state", "save_state"]

DIRECT = "direct.safetensors"
LOGS = ("log", "distances", "tensors")


def save_state(lab: Lab, folder: Path) -> None:
    """Write the state between two steps; a `RunError` where the disk refuses."""
    lab.shadow.settle()
    part, whole = folder / "part", folder / f"step-{lab.step}"
    with disk_errors("write the state in", folder):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for file, runner in _files(lab, part):
            runner.capture(lab.step).save(file)
        library: Any = safetensors.torch
        library.save_file(_direct(lab), part / DIRECT)
        notes = {name: getattr(lab, name) for name in LOGS} | {
            "direct": list(_direct(lab)),  # safetensors sorts what it is given
            "shadow": lab.shadow.counters(),
            "clocks": {name: error.clocks() for name, error in lab.errors.items()},
            "sha256": _sha256(part / DIRECT),
        }
        replace_file(part / "notes.json", dumps({"digest": digest(notes), "notes": notes}))
        part.rename(whole)
    for old in _states(folder):
        if old != whole:
            shutil.rmtree(old, ignore_errors=True)


def load_state(lab: Lab, folder: Path) -> None:
    """Put the newest whole state into a lab that has not begun; nothing where there is none."""
    for place in reversed(_states(folder)):
        try:
            _load(lab, place)
        except (RoundoffError, OSError, SafetensorError, KeyError) as error:
            raise RunError(
                f"the state in {place} is damaged ({error}); "
                f"remove {folder} to begin this repeat again"
            ) from error
        return


def _load(lab: Lab, place: Path) -> None:
    held: Any = loads((place / "notes.json").read_bytes())
    notes: Any = held["notes"]
    for name, sound in (
        ("notes.json", held["digest"] == digest(notes)),
        (DIRECT, notes["sha256"] == _sha256(place / DIRECT)),
    ):
        if not sound:
            raise RunError(f"{name} is not what was written")
    for file, runner in _files(lab, place):
        runner.restore(Snapshot.load(file))
    library: Any = safetensors.torch
    stored: dict[str, Tensor] = library.load_file(place / DIRECT)
    tensors = {name: stored[name] for name in notes["direct"]}
    errors = {
        name: DirectError.of(
            {t.partition("|")[2]: x for t, x in tensors.items() if t.startswith(f"{name}|")}, clocks
        )
        for name, clocks in notes["clocks"].items()
    }
    of = {kind: {n: errors[f"{kind} {n}"] for n in lab.updates} for kind in ("gradient", "update")}
    lab.shadow.resume(notes["shadow"], of["gradient"])
    lab.updates = of["update"]
    for name in LOGS:
        setattr(lab, name, notes[name])
    lab.step = int(place.name.removeprefix("step-"))


def _direct(lab: Lab) -> dict[str, Tensor]:
    return {
        f"{name}|{tensor}": x.contiguous()
        for name, error in lab.errors.items()
        for tensor, x in error.tensors().items()
    }


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _states(folder: Path) -> list[Path]:
    """The whole states, the oldest first."""
    found = [p for p in folder.glob("step-*") if p.name.removeprefix("step-").isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def _files(lab: Lab, place: Path) -> Iterator[tuple[Path, Runner]]:
    """The file of each arm: by number, since two names may read alike without their slashes."""
    for number, (name, runner) in enumerate(lab.everyone.items()):
        readable = re.sub(r"[^A-Za-z0-9.@-]+", "_", name)[-60:]
        yield place / f"{number:02}-{readable}.safetensors", runner
