"""Event files as TensorBoard's own writer makes them, for the tests of those that read them."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter

from lightning_lr.record.records import as_summary, to_json

TAG = "lr-SGD"
GROUP = {"tag": TAG, "optimizer": "SGD", "group": ""}
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
        return self._event(step=step, summary=as_summary([to_json({"step": step, "words": "", **fields})]))

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


_NUMBERS = itertools.count()


def write(
    folder: Path, records: Sequence[dict[str, Any]] = (), *, at: int = 0, begins: bool = True, **scalars: list[float]
) -> None:
    """A run, or more of it, in one more event file.

    Args:
        folder: of the run.
        records: what the journal says.
        at: the step of the first point of each scalar; the others follow step by step.
        begins: whether a `run` record comes first.
        scalars: by tag, in which `__` stands for a slash.
    """
    number = next(_NUMBERS)
    writer = Writer(folder, 1e9 + 1e6 * number, str(number))
    if begins:
        writer.record(0, **RUN | {"factors": ["Warmup"]})
    for record in records:
        writer.record(**record)
    for tag, values in scalars.items():
        writer.scalars(tag.replace("__", "/"), enumerate(values, at))


def change(step: int, old: float, new: float, source: str = "PlateauDecay", tag: str = TAG) -> dict[str, Any]:
    """The record of a change that a callback made."""
    part = {"source": source, "old": 1.0, "new": new / old, "reason": "a reason"}
    words = f"SGD: {old} -> {new}"
    return {
        "kind": "change",
        "step": step,
        "words": words,
        "old": old,
        "new": new,
        "parts": [part],
        **GROUP,
        "tag": tag,
    }
