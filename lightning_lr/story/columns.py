"""Columns: the scalars among many frames, decoded together where their byte layout is the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

from lightning_lr.story.checksum import checksums
from lightning_lr.story.frames import FOOT

LONGEST = 2048
"""Longer frames are not plain scalars, or have a very long tag, and are few."""

TIME, STEP, SUMMARY, VALUE = 0x09, 0x10, 0x2A, 0x15
"""The bytes before an event's time, step and summary, and before a scalar's value.
Source: tensorboard/compat/proto/event.proto and summary.proto."""


@dataclass
class Column:
    """Points of one scalar.

    Args:
        tag: the scalar's tag.
        frames: the indices of its frames, rising, int64, shape (n,).
        steps: int64, shape (n,).
        values: float32, shape (n,).
    """

    tag: str
    frames: NDArray[np.int64]
    steps: NDArray[np.int64]
    values: NDArray[np.float32]


def columns(
    data: bytes, starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> tuple[list[Column], NDArray[np.int64], int | None]:
    """Decodes the plain scalars: events with one value that has a tag and a float, and nothing else.

    Args:
        data: the bytes.
        starts: where each frame's data begins, shape (n,).
        lengths: the length of each frame's data, without its checksum, shape (n,).

    Returns:
        The scalars; the indices of all other frames, rising; the index of the first frame with a wrong checksum, or
        None.
    """
    found: list[Column] = []
    others: list[NDArray[np.int64]] = []
    wrong: list[int] = []
    buffer = np.frombuffer(data, np.uint8)
    order = np.argsort(lengths, kind="stable")
    kinds, counts = np.unique(lengths, return_counts=True)
    for length, frames in zip(kinds.tolist(), np.split(order, np.cumsum(counts)[:-1]), strict=True):
        rows = sliding_window_view(buffer, length + FOOT)[starts[frames]]
        told = np.ascontiguousarray(rows[:, length:]).view("<u4")[:, 0]
        differ = (rows != rows[0]).any(axis=0)
        right = checksums(rows[:, :length], np.flatnonzero(differ[:length])) == told
        if not right.all():
            wrong.append(int(frames[right.argmin()]))
        if length > LONGEST or length < 20:
            others.append(frames)
            continue
        plain = (rows[:, 0] == TIME) & (rows[:, length - 5] == VALUE)
        bytes_of_step = _bytes_of_step(rows, length)
        plain &= bytes_of_step >= 0
        others.append(frames[~plain])
        for size in np.unique(bytes_of_step[plain]).tolist():
            take = plain & (bytes_of_step == size)
            # often all rows are of one kind, and then no copy is needed
            whole = take.all()
            own, left = _alike(
                rows if whole else rows[take],
                frames if whole else frames[take],
                length,
                size,
                one=not differ[9 + (size and 1 + size) : length - 4].any(),
            )
            found += own
            others.append(left)
    rest = np.sort(np.concatenate([np.zeros(0, np.int64), *others]))
    return _by_tag(found), rest, min(wrong, default=None)


def _bytes_of_step(rows: NDArray[np.uint8], length: int) -> NDArray[np.int64]:
    """The bytes that the step takes: 0 where it is omitted because it is 0; -1 where that is unknown."""
    size = np.where(rows[:, 9] == STEP, 1, -1)
    # a varint continues while the highest bit is set
    goes_on = size == 1
    for column in range(10, min(19, length - 8)):
        goes_on &= rows[:, column] >= 0x80
        if not goes_on.any():
            break
        size += goes_on
    size[rows[:, 9] == SUMMARY] = 0
    return np.where(size > 8, -1, size)


def _alike(
    rows: NDArray[np.uint8], frames: NDArray[np.int64], length: int, size: int, *, one: bool
) -> tuple[list[Column], NDArray[np.int64]]:
    """Scalars whose step takes the same number of bytes; and the indices of frames that are not scalars."""
    begin = 9 + (size and 1 + size)
    steps = np.zeros(len(rows), np.int64)
    for i in range(size):
        steps |= (rows[:, 10 + i].astype(np.int64) & 0x7F) << (7 * i)
    values = np.ascontiguousarray(rows[:, length - 4 : length]).view("<f4")[:, 0]
    fixed = rows[:, begin : length - 4]
    kinds, which = _kinds(fixed[:1] if one else fixed)
    tags = [_tag(rows[kind, :length].tobytes(), begin) for kind in kinds.tolist()]
    # two kinds may have the same hash
    same = np.ones(len(rows), np.bool_) if one else (fixed == fixed[kinds][which]).all(axis=1)
    own = []
    for kind, tag in enumerate(tags):
        if tag is None:
            same &= which != kind
        else:
            take = slice(None) if one else same & (which == kind)
            own.append(Column(tag, frames[take], steps[take], values[take]))
    return own, frames[~same]


def _kinds(fixed: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first row of each kind, and the kind of each row."""
    count, width = fixed.shape
    if (fixed == fixed[0]).all():
        return np.zeros(1, np.int64), np.zeros(count, np.int64)
    words = np.zeros((count, -(-width // 8) * 8), np.uint8)
    words[:, :width] = fixed
    odd = np.random.default_rng(0).integers(1, 2**63, words.shape[1] // 8, np.uint64) * np.uint64(2) + np.uint64(1)
    mixed = words.view(np.uint64) * odd
    mixed ^= mixed >> np.uint64(29)
    hashes = mixed.sum(axis=1, dtype=np.uint64)
    _, kinds, which = np.unique(hashes, return_index=True, return_inverse=True)
    return kinds, which.reshape(-1)


def _tag(raw: bytes, begin: int) -> str | None:
    """The tag, if the event is one scalar in the expected layout; its summary begins at `begin`."""
    try:
        event = Event.FromString(raw)
    except Exception:
        return None
    if len(event.summary.value) != 1:
        return None
    tag = event.summary.value[0].tag
    plain = Event()
    plain.summary.value.add(tag=tag, simple_value=1.0)
    return tag if plain.SerializeToString()[:-4] == raw[begin:-4] else None


def _by_tag(found: list[Column]) -> list[Column]:
    """Joins the columns of each tag, in the order of the frames."""
    tags: dict[str, list[Column]] = {}
    for column in found:
        tags.setdefault(column.tag, []).append(column)
    joined = []
    for tag, own in tags.items():
        if len(own) == 1:
            joined += own
            continue
        frames = np.concatenate([column.frames for column in own])
        order = np.argsort(frames, kind="stable")
        steps, values = np.concatenate([c.steps for c in own]), np.concatenate([c.values for c in own])
        joined.append(Column(tag, frames[order], steps[order], values[order]))
    return joined
