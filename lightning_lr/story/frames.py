"""Frames: the records of an event file, as bytes.

An event file is a row of frames: the length (8 bytes), the length's checksum (4), the data, the data's checksum (4).
Source: TensorFlow's `core/lib/io/record_writer.h` (the format "TFRecord"); the checksum is a masked CRC-32C.
"""

from __future__ import annotations

import struct
from functools import cache

import numpy as np
from numpy.typing import NDArray

from lightning_lr.story.checksum import checksums

HEAD, FOOT = 12, 4
AROUND = HEAD + FOOT
"""The bytes of a frame beside its data."""

FEW, MOST = 32, 8192
"""So many frames at a time are guessed to be as long as the one before."""

_length = struct.Struct("<Q").unpack_from


def walk(data: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64], int, str]:
    """Finds the whole frames.

    Args:
        data: begins with a frame; may end within one.

    Returns:
        Where each frame's data begins, how long it is, where the last whole frame ends, and in words what is broken
        there: empty where nothing is, and the rest is only not there yet.
    """
    starts: list[NDArray[np.int64]] = []
    lengths: list[NDArray[np.int64]] = []
    at, end, row, last = 0, len(data), FEW, -1
    broken = ""
    lone_at: list[int] = []
    lone_length: list[int] = []

    def settle() -> None:
        if lone_at:
            starts.append(np.array(lone_at, np.int64))
            lengths.append(np.array(lone_length, np.int64))
            lone_at.clear()
            lone_length.clear()

    while at + HEAD <= end:
        length: int = _length(data, at)[0]
        if data[at + 8 : at + HEAD] != _header(length)[0]:
            broken = "a length's checksum is wrong"
            break
        step = length + AROUND
        if at + step > end:
            break
        if length == last:
            # often many of a length follow each other, and numpy sees that at once
            many = min(row, (end - at) // step)
            # the checksum of an equal length is equal
            same = np.ndarray(many, "<u8", data, at, (step,)) == length
            same &= np.ndarray(many, "<u4", data, at + 8, (step,)) == _header(length)[1]
            run = many if same.all() else int(same.argmin())
            if run > 2:
                settle()
                starts.append(at + HEAD + step * np.arange(run, dtype=np.int64))
                lengths.append(np.full(run, length, np.int64))
                at += run * step
                row = min(2 * row, MOST) if run == many else max(FEW, run // 2)
                continue
        last = length
        lone_at.append(at + HEAD)
        lone_length.append(length)
        at += step
    settle()
    none = np.zeros(0, np.int64)
    return np.concatenate([none, *starts]), np.concatenate([none, *lengths]), at, broken


@cache
def _header(length: int) -> tuple[bytes, int]:
    """The checksum of a length, as bytes and as a number."""
    checksum = int(checksums(np.frombuffer(struct.pack("<Q", length), np.uint8)[None, :])[0])
    return struct.pack("<I", checksum), checksum
