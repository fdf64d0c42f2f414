"""CopyPolicy: when the weights are copied."""

from __future__ import annotations

from dataclasses import dataclass

LEAST = 10
"""The fewest updates between two copies: with fewer, the older one is not proven when the newer one is due."""

PER_UPDATE = 2**24
"""Bytes of copies for each update, at most, on a rank: to pinned memory less than a millisecond, within the host a few.
An update of a model whose copies take more than ten times that takes longer by far."""

MOST = 500
"""Updates between two copies, of a model of whatever size."""

SHARE = 32
"""At a rewind `n` updates after the start, or after the one before, about `n / (2 * SHARE)` are lost."""


@dataclass(frozen=True)
class CopyPolicy:
    """Copies are close together after a start and a rewind, and then further and further apart.

    Counts and sizes decide, and no clock: two runs of one seed copy at the same updates.

    Args:
        interval: the most updates between two copies, >= 1; None: 500, and the least number by their size.

    Example:
        >>> policy = CopyPolicy()
        >>> [policy.due(clock=k, last=k - 12, since=k, size=10**6) for k in (100, 1000)]
        [True, False]
        >>> policy.due(clock=100, last=88, since=100, size=10**9)
        False
    """

    interval: int | None = None

    def due(self, *, clock: int, last: int, since: int, size: int) -> bool:
        """Whether the weights at hand are to be copied.

        Args:
            clock: updates judged so far.
            last: the same at the newest copy.
            since: updates since the start or the last rewind.
            size: bytes of the newest copy, on the rank where it is largest.
        """
        if self.interval is not None:
            return clock - last >= min(self.interval, max(LEAST, since // SHARE))
        return clock - last >= min(max(LEAST, size // PER_UPDATE, since // SHARE), MOST)
