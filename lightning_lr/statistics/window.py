"""Window: where the healthy values of a noisy series end, from a bounded window of them."""

from __future__ import annotations

from collections.abc import Sequence

TAIL_SHARE = 0.1
"""The share of a window that counts as its upper tail."""


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


def spread(values: Sequence[float]) -> float:
    """The median distance from the median, times 1.4826: the standard deviation, for normal values.

    Args:
        values: finite numbers, at least one.

    Example:
        >>> round(spread([1.0, 2.0, 3.0, 4.0, 1e100]), 4)
        1.4826
    """
    middle = centre(values)
    return 1.4826 * centre([abs(value - middle) for value in values])


def upper_tail(values: Sequence[float]) -> tuple[float, float]:
    """Where the upper tail of the values begins, and how far it reaches on average.

    A tail that falls exponentially beyond its beginning `u` with mean excess `e` has a share of `TAIL_SHARE * exp(-c)`
    of all values above `u + c * e`. For the logarithm of a heavy-tailed (power-law) loss this is exact, for anything
    lighter it is cautious: what to expect from the *run's own* tail, instead of from a normal distribution.

    Args:
        values: finite numbers, at least ten.

    Returns:
        The quantile at `1 - TAIL_SHARE`, and the mean excess of the values above it; both in the values' unit.

    Source: Hill, "A simple general approach to inference about the tail of a distribution", Annals of Statistics 3
        (1975).

    Example:
        >>> upper_tail([float(n) for n in range(20)])
        (17.0, 1.5)
    """
    ordered = sorted(values)
    count = max(1, int(len(ordered) * TAIL_SHARE))
    begin = ordered[-count - 1]
    return begin, sum(ordered[-count:]) / count - begin
