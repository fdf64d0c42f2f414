"""Checksums: the masked CRC-32C of many byte strings of one length at once.

A CRC is linear: each byte adds its share, which depends only on its value and on how many bytes follow it.
Source: Castagnoli's polynomial (RFC 3720, 12.1); the mask is that of TensorFlow's `core/lib/hash/crc32c.h`.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

PIECE = 2048
"""Bytes of a string that are taken together."""

FEW = 512
"""With more strings than this, only the columns of bytes that differ are computed."""

_MASK, _ONES = np.uint32(0xA282EAD8), np.uint32(0xFFFFFFFF)


def checksums(rows: NDArray[np.uint8], differ: NDArray[np.int64] | None = None) -> NDArray[np.uint32]:
    """The masked CRC-32C of each row.

    Args:
        rows: uint8, shape (n, length).
        differ: the columns in which the rows are not all equal, if known.

    Returns:
        Shape (n,).

    Example:
        >>> hex(checksums(np.frombuffer(b"123456789", np.uint8)[None, :])[0])
        '0xc78ab0e5'
    """
    count, length = rows.shape
    if count <= FEW or length > PIECE:
        crc = np.concatenate([np.zeros(0, np.uint32), *(_crc(rows[i : i + FEW]) for i in range(0, count, FEW))])
    else:
        first, shares = rows[0], _shares()
        crc = np.full(count, _crc(rows[:1])[0], np.uint32)
        for column in (np.flatnonzero((rows != first).any(axis=0)) if differ is None else differ).tolist():
            crc ^= shares[length - 1 - column][rows[:, column] ^ first[column]]
    return ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + _MASK


def _crc(rows: NDArray[np.uint8]) -> NDArray[np.uint32]:
    shares, crc = _shares(), np.full(len(rows), _ONES, np.uint32)
    for begin in range(0, rows.shape[1], PIECE):
        piece = rows[:, begin : begin + PIECE].copy()
        size = piece.shape[1]
        # what came before acts on the next four bytes only
        head = min(4, size)
        piece[:, :head] ^= crc.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :head]
        rest = crc >> np.uint32(8 * size) if size < 4 else np.uint32(0)
        crc = np.bitwise_xor.reduce(shares[np.arange(size - 1, -1, -1), piece], axis=1) ^ rest
    return crc ^ _ONES


@cache
def _shares() -> NDArray[np.uint32]:
    """Shape (PIECE, 256): what each value of a byte adds, by how many bytes follow it."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ np.where(table & 1, np.uint32(0x82F63B78), np.uint32(0))
    shares = np.empty((PIECE, 256), np.uint32)
    shares[0] = table
    for behind in range(1, PIECE):
        before = shares[behind - 1]
        shares[behind] = (before >> np.uint32(8)) ^ table[before & np.uint32(0xFF)]
    return shares
