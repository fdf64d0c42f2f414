"""Copies: when the weights are to be copied."""

from __future__ import annotations

from dataclasses import dataclass

LEAST = 10
"""Updates between two copies: fewer, and the older one is not proven when the newer one is due."""

SHARE = 32
"""At a rewind `n` updates after the start, or after the one before, about `n / (2 * SHARE)` are lost."""


@dataclass(frozen=True)
class CopyPolicy:
    """Copies are close together after a start and a rewind, and then further and further apart.

    Example:
        >>> policy = CopyPolicy()
        >>> [policy.due(clock=k, last=k - 12, since=k, interval=500) for k in (100, 1000)]
        [True, False]
    """

    def due(self, *, clock: int, last: int, since: int, interval: int) -> bool:
        """Whether the weights at hand are to be copied.

        Args:
            clock: updates judged so far.
            last: the same at the newest copy.
            since: updates since the start or the last rewind.
            interval: the most updates between two copies, >= 1.
        """
        return clock - last >= min(interval, max(LEAST, since // SHARE))
