"""An event file of TensorBoard: all that it holds, exactly, and what was added since the last look."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tensorboard.compat import tf
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.util.tensor_util import make_ndarray

from lightning_lr.story.columns import columns
from lightning_lr.story.frames import HEAD, walk

BLOCK = 4 * 2**20
"""Bytes that are read at a time; more only for a frame that is larger."""

Points = tuple[NDArray[np.int64], NDArray[np.floating[Any]]]
"""Steps and values, shape (n,) each, in the order in which they were written."""


@dataclass
class Text:
    """A summary of texts.

    Args:
        tag: the summary's tag.
        plugin: the name of the plugin that it belongs to.
        step: the step on the loggers' axis.
        texts: the strings of its tensor.
    """

    tag: str
    plugin: str
    step: int
    texts: list[str]


@dataclass
class Segment:
    """What one writer wrote from one start of a run to the next.

    Args:
        scalars: points by tag, in the order in which they were written.
        texts: the texts, in the same order.
        records: the records that were parsed out of the texts.
    """

    scalars: dict[str, list[Points]] = field(default_factory=dict)
    texts: list[Text] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)


class EventFile:
    """Reads a file as far as it is written, and continues from there the next time.

    Args:
        path: the file, at any place that TensorBoard can read.
        keeps: whether to keep a summary of texts with this tag and of this plugin.
        starts: whether a new part begins with this summary.
    """

    def __init__(self, path: str, keeps: Callable[[str, str], bool], starts: Callable[[Text], bool]) -> None:
        self.path = path
        self.parts = [Segment()]
        self.damage = ""
        """What is broken, and where reading stopped; empty if nothing is."""
        self.begin: float | None = None
        """The time of the first event, in seconds since 1970."""
        self.time: float | None = None
        """The time of the latest event, in seconds since 1970."""
        self._keeps, self._starts = keeps, starts
        self._position = 0
        self._rest = b""
        self._remote: Any = None
        self._plugins: dict[str, str] = {}

    @property
    def half(self) -> bool:
        """Whether the file ends in the middle of a frame, so far."""
        return bool(self._rest) and not self.damage

    def read(self) -> bool:
        """Reads what was added; returns whether there was anything."""
        before = self._position
        while not self.damage and (new := self._read(max(BLOCK, len(self._rest)))):
            data = self._rest + new if self._rest else new
            self._rest = data[self._take(data) :]
        return self._position > before

    def _read(self, size: int) -> bytes:
        if os.path.exists(self.path):
            with open(self.path, "rb") as file:
                file.seek(self._position)
                new = file.read(size)
        else:
            self._remote = self._remote or tf.io.gfile.GFile(self.path, "rb")
            new = self._remote.read(size)
        self._position += len(new)
        return new

    def _take(self, data: bytes) -> int:
        """Decodes the complete frames; returns where they end."""
        starts, lengths, done, broken = walk(data)
        if not len(starts):
            self._broken(data, done, broken)
            return done
        found, others, wrong = columns(data, starts, lengths)
        if wrong is not None:
            # the frames before it are sound
            done, broken = int(starts[wrong]) - HEAD, "a record's checksum is wrong"
            found, others, _ = columns(data, starts[:wrong], lengths[:wrong]) if wrong else ([], others[:0], None)
        cuts: list[int] = []
        slow: list[tuple[int, str, int, float]] = []
        for frame in others.tolist():
            try:
                event = Event.FromString(data[starts[frame] : starts[frame] + lengths[frame]])
            except DecodeError:
                done, broken = int(starts[frame]) - HEAD, "a record can't be decoded"
                break
            self._timed(event.wall_time)
            for value in event.summary.value:
                self._value(event.step, value, frame, cuts, slow)
        first = len(self.parts) - 1 - len(cuts)
        for tag, frames, steps, values in [*((c.tag, c.frames, c.steps, c.values) for c in found), *_joined(slow)]:
            at = [0, *np.searchsorted(frames, cuts).tolist(), len(frames)]
            for i, part in enumerate(self.parts[first:]):
                if at[i] < at[i + 1]:
                    own = slice(at[i], at[i + 1])
                    # a copy, since a view would keep the whole block in memory
                    part.scalars.setdefault(tag, []).append((steps[own].copy(), values[own].copy()))
        last = len(starts) - 1 if wrong is None else wrong - 1
        for frame in (0, last) if last >= 0 else ():
            event = Event.FromString(data[starts[frame] : starts[frame] + lengths[frame]])
            self._timed(event.wall_time)
        self._broken(data, done, broken)
        return done

    def _broken(self, data: bytes, done: int, broken: str) -> None:
        if broken:
            at = self._position - len(data) + done
            self.damage = f"{broken} at byte {at:,}: what comes after it in this file can't be read"

    def _timed(self, time: float) -> None:
        self.begin = time if self.begin is None else min(self.begin, time)
        self.time = time if self.time is None else max(self.time, time)

    def _value(
        self,
        step: int,
        value: Summary.Value,
        frame: int,
        cuts: list[int],
        slow: list[tuple[int, str, int, float]],
    ) -> None:
        # only a tag's first summary has to name its plugin
        plugin = value.metadata.plugin_data.plugin_name
        plugin = self._plugins.setdefault(value.tag, plugin) if plugin else self._plugins.get(value.tag, "")
        if value.HasField("simple_value"):
            slow.append((frame, value.tag, step, value.simple_value))
        elif value.HasField("tensor") and plugin == "scalars":
            array = make_ndarray(value.tensor)
            if array.size == 1:
                slow.append((frame, value.tag, step, float(array.reshape(-1)[0])))
        elif value.HasField("tensor") and self._keeps(value.tag, plugin):
            texts = [text.decode("utf-8", "replace") for text in value.tensor.string_val]
            text = Text(value.tag, plugin, step, texts)
            if self._starts(text):
                self.parts.append(Segment())
                cuts.append(frame)
            self.parts[-1].texts.append(text)


def _joined(slow: list[tuple[int, str, int, float]]) -> list[tuple[str, NDArray[Any], NDArray[Any], NDArray[Any]]]:
    tags: dict[str, list[tuple[int, int, float]]] = {}
    for frame, tag, step, value in slow:
        tags.setdefault(tag, []).append((frame, step, value))
    found = []
    for tag, own in tags.items():
        frames, steps, values = zip(*own, strict=True)
        found.append((tag, np.array(frames, np.int64), np.array(steps, np.int64), np.array(values, np.float64)))
    return found
