"""Event files as TensorBoard's own writer makes them, for the tests of those that read them."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter

from lightning_lr.records import as_json, summary

GROUP = {"tag": "lr-SGD", "optimizer": "SGD", "group": ""}
RUN = {"kind": "run", "groups": [GROUP], "factors": ["DivergenceGuard"], "resumed": False, "updates": 100}
END = {"kind": "end", "status": "finished", "updates": 100}
HURT = {"kind": "incident", "callback": "DivergenceGuard", "cause": "the loss is not finite", "words": "w"}


class Writer:
    """Writes one file.

    Args:
        folder: is made.
        time: of its first event, in seconds since 1970; each event comes a second later.
        name: the last part of the file's name.
    """

    def __init__(self, folder: Path, time: float = 1e9, name: str = "0") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"events.out.tfevents.{int(time)}.host.{name}"
        self.time = time
        self.path.touch()
        self._event(file_version="brain.Event:2")

    def scalar(self, tag: str, step: int, value: float) -> Writer:
        event = Event()
        event.summary.value.add(tag=tag, simple_value=value)
        return self._event(step=step, summary=event.summary)

    def scalars(self, tag: str, points: Iterable[tuple[int, float]]) -> Writer:
        for step, value in points:
            self.scalar(tag, step, value)
        return self

    def record(self, step: int, **fields: Any) -> Writer:
        return self._event(step=step, summary=summary([as_json({"step": step, "words": "", **fields})]))

    def _event(self, **fields: Any) -> Writer:
        with self.path.open("ab") as file:
            RecordWriter(file).write(Event(wall_time=self.time, **fields).SerializeToString())
        self.time += 1.0
        return self


def frames(path: Path) -> list[int]:
    """Where each frame of a file begins."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        found.append(at)
        at += struct.unpack_from("<Q", data, at)[0] + 16
    return found


def run(folder: Path, updates: int = 100, time: float = 1e9) -> Writer:
    """A small run that ended well."""
    writer = Writer(folder, time).record(0, **RUN)
    for step in range(updates):
        writer.scalar("lr-SGD", step, 0.1).scalar("train_loss", step, 2.0 / (1 + step))
    writer.scalar("lr-factor/DivergenceGuard", 0, 1.0)
    return writer
