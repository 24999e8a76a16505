"""Readings as scalars of TensorBoard, by the writer of its records and none of its threads.

torch's SummaryWriter writes in a thread, where a full disk ends in a traceback that no caller sees.
"""

from __future__ import annotations

import importlib
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from roundoff.records import Finding, Reading
from roundoff.registry import load, require
from roundoff.store.disk import AppendFile, check_writable, disk_errors

__all__ = ["TensorBoard"]


class TensorBoard:
    """A file of events in `folder`, with tags `of/name[head]/measure`; findings are texts.

    A NaN or an infinity stays one. `MissingLibraryError` without tensorboard (the extra `live`),
    `RunError` for a folder that cannot be written.
    """

    def __init__(self, folder: str | Path) -> None:
        require("tensorboard", extra="live", purpose="the sink TensorBoard")
        self._folder = Path(folder)
        self._events = _proto("event")
        self._values = _proto("summary")
        self._file: AppendFile | None = None
        check_writable(self._folder, folder=True)

    def write(self, step: int, readings: Sequence[Reading], findings: Sequence[Finding]) -> None:
        """Add one event, whole or not at all."""
        values = [
            self._values.Summary.Value(tag=f"{r.of}/{r.place}/{measure}", simple_value=value)
            for r in readings
            for measure, value in r.values.items()
        ]
        if findings:
            values.append(self._text("findings", "\n\n".join(map(str, findings))))
        self._add(step=step, summary=self._values.Summary(value=values))

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _add(self, **what: Any) -> None:
        event = self._events.Event(wall_time=time.time(), **what)
        if self._file is None:
            self._file = self._opened()
        _record_writer(self._file).write(event.SerializeToString())

    def _opened(self) -> AppendFile:
        with disk_errors("write", self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        now = time.time_ns()  # TensorBoard reads files by their name, one after the other
        here = f"{socket.gethostname()}.{os.getpid()}"
        file = AppendFile(
            self._folder / f"events.out.tfevents.{now // 10**9}.{now % 10**9:09}.{here}"
        )
        first = self._events.Event(wall_time=time.time(), file_version="brain.Event:2")
        _record_writer(file).write(first.SerializeToString())
        return file

    def _text(self, tag: str, text: str) -> Any:
        metadata = self._values.SummaryMetadata(
            plugin_data=self._values.SummaryMetadata.PluginData(plugin_name="text")
        )
        tensor = _proto("tensor").TensorProto(dtype="DT_STRING", string_val=[text.encode()])
        return self._values.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)


def _proto(name: str) -> Any:
    return importlib.import_module(f"tensorboard.compat.proto.{name}_pb2")


def _record_writer(file: AppendFile) -> Any:
    return load("tensorboard.summary.writer.record_writer:RecordWriter")(file)
