"""Frames: the records of an event file, as bytes.

An event file is a row of frames: the length (8 bytes), the length's checksum (4), the data, the data's checksum (4).
Source: TensorFlow's `core/lib/io/record_writer.h` (the format "TFRecord").
"""

from __future__ import annotations

import struct
from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from lightning_lr.story.checksum import checksums

HEAD, FOOT = 12, 4
AROUND = HEAD + FOOT
"""The bytes of a frame besides its data."""

SHORT = 4096
"""The checksums of lengths below this are kept."""

Spans = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Where the data of each frame begins, and how long it is; shape (n,) each."""

_length = struct.Struct("<Q").unpack_from


def walk(data: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64], int, str]:
    """Finds the complete frames.

    Args:
        data: begins with a frame; may end within one.

    Returns:
        Where each frame's data begins, how long it is, where the last complete frame ends, and what is broken there, in
        words; empty if nothing is and the rest is just not written yet.
    """
    starts, lengths = _all_at_once(data)
    at = int(starts[-1] + lengths[-1]) + FOOT if len(starts) else 0
    # frames that are not part of the chain, or too large for it
    more, broken = [], ""
    while at + HEAD <= len(data):
        length: int = _length(data, at)[0]
        head = np.frombuffer(data, np.uint8, HEAD, at)
        if checksums(head[None, :8])[0] != head[8:].view("<u4")[0]:
            broken = "a length's checksum is wrong"
            break
        if at + AROUND + length > len(data):
            break
        more.append((at + HEAD, length))
        at += AROUND + length
    if more:
        added = np.array(more, np.int64)
        starts, lengths = np.concatenate([starts, added[:, 0]]), np.concatenate([lengths, added[:, 1]])
    return starts, lengths, at, broken


@cache
def _short() -> NDArray[np.uint32]:
    """The checksums of all lengths below `SHORT`."""
    return checksums(np.arange(SHORT, dtype="<u8").view(np.uint8).reshape(-1, 8))


def _all_at_once(data: bytes) -> Spans:
    """The frames that form a chain from the beginning on.

    Instead of walking from one frame to the next, it looks for everything that can be a length with its checksum: the
    upper 5 of 8 bytes are 0, since no frame is larger than 16 MiB. Frames that follow one another without a gap are
    real.
    """
    none = np.zeros(0, np.int64)
    if len(data) < AROUND:
        return none, none
    buffer = np.frombuffer(data, np.uint8)
    zero = buffer[: len(data) - FOOT] == 0
    zeros = zero[:-1] & zero[1:]
    zeros = zeros[:-2] & zeros[2:]
    at = np.flatnonzero(zeros[:-1] & zero[4:]) - 3
    at = at[np.searchsorted(at, 0) :]
    heads = sliding_window_view(buffer, HEAD)[at]
    lengths = heads[:, :8].copy().view("<i8")[:, 0]
    told = heads[:, 8:].copy().view("<u4")[:, 0]
    right = _short()[np.minimum(lengths, SHORT - 1)] == told
    right &= lengths < SHORT
    # the two places before a length look like a length too; only the checksum tells, and it takes long
    near = np.concatenate([right, [False, False]])
    open_ = np.flatnonzero((lengths >= SHORT) & ~near[1:-1] & ~near[2:])
    right[open_] = checksums(heads[open_, :8]) == told[open_]
    at, lengths = at[right], lengths[right]
    ends = at + AROUND + lengths
    chain = at == np.concatenate([none, [0], ends[:-1]])
    chain &= ends <= len(data)
    whole = len(chain) if chain.all() else int(chain.argmin())
    return at[:whole] + HEAD, lengths[:whole]
