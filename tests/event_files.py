"""Event files as the journal writes them, made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from lightning_lr.records import summary

TAG = "lr-SGD"
GROUPS = [{"tag": TAG, "optimizer": "SGD", "group": ""}]


def change(step: int, old: float, new: float, source: str = "PlateauDecay", tag: str = TAG) -> dict[str, Any]:
    parts = [{"source": source, "old": 1.0, "new": new / old, "reason": "a reason"}]
    names = {"tag": tag, "optimizer": "SGD", "group": ""}
    return {
        "kind": "change",
        "step": step,
        "words": f"SGD: {old} -> {new}",
        "old": old,
        "new": new,
        "parts": parts,
        **names,
    }


def write(
    folder: Path, records: Sequence[dict[str, Any]] = (), *, at: int = 0, begins: bool = True, **scalars: list[float]
) -> None:
    """A run, or more of it.

    Args:
        folder: of the run; it gets one more event file.
        records: what the journal says.
        at: the step of the first point of each scalar; the others follow step by step.
        begins: whether a `run` record comes first.
        scalars: by tag, in which `__` stands for a slash.
    """
    writer = EventFileWriter(str(folder))
    start = {"kind": "run", "step": 0, "groups": GROUPS, "factors": ["Warmup"], "callbacks": [], "time": 0.0}
    for record in [*([start] if begins else []), *records]:
        writer.add_event(Event(step=record["step"], wall_time=1.0, summary=summary([record])))
    for tag, values in scalars.items():
        for step, value in enumerate(values, at):
            one = Summary(value=[Summary.Value(tag=tag.replace("__", "/"), simple_value=value)])
            writer.add_event(Event(step=step, wall_time=1.0, summary=one))
    writer.close()
