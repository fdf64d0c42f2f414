"""Window: the middle of the values in one."""

from __future__ import annotations

from collections.abc import Sequence


def centre(values: Sequence[float]) -> float:
    """The median: half of the values may be arbitrarily wrong before it is.

    Args:
        values: finite numbers, at least one.

    Example:
        >>> centre([1.0, 2.0, 1e100])
        2.0
    """
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
