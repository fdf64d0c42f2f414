"""A window of values, and their middle."""

from __future__ import annotations

from collections.abc import Sequence


def centre(values: Sequence[float]) -> float:
    """The median. It stays right while fewer than half of the values are wrong, however wrong they are.

    Args:
        values: finite numbers, at least one.

    Example:
        >>> centre([1.0, 2.0, 1e100])
        2.0
    """
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
