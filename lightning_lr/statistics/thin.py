"""Thinning: fewer points of a series that draw the same picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PER_BIN = 5
"""Points kept of each bin: the first, lowest, highest and last, and the first that is not finite."""


def thin(
    steps: NDArray[np.int64],
    values: NDArray[np.float64],
    points: int,
    begin: float | None = None,
    end: float | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float64], bool]:
    """Keeps what can be seen of a series: no step, spike or gap is lost, and each is off by a bin at most.

    Args:
        steps: int64, shape (n,), rising.
        values: shape (n,).
        points: the most points to keep, besides two that lie outside the range; >= 5.
        begin: the first step of the range; None: the first of the series.
        end: the last step of the range; None: the last of the series.

    Returns:
        The kept steps and values, in their order, and whether any point within the range was left out. The last point
        before the range and the first one after it are among them, so that a line can be drawn up to the edges.

    Raises:
        ValueError: for fewer points than 5.

    Example:
        >>> spike = np.zeros(1_000_000)
        >>> spike[123_456] = 1.0
        >>> steps, values, thinned = thin(np.arange(1_000_000), spike, 1000)
        >>> bool(len(steps) <= 1000), steps[values == 1.0].tolist(), thinned
        (True, [123456], True)
    """
    if points < PER_BIN:
        raise ValueError(f"points must be at least {PER_BIN}, got {points}")
    low = 0 if begin is None else int(np.searchsorted(steps, begin, "left"))
    high = len(steps) if end is None else int(np.searchsorted(steps, end, "right"))
    inside_steps, inside = steps[low:high], values[low:high]
    few = high - low <= points
    keep = np.arange(low, high) if few else low + _seen(inside_steps, inside, points // PER_BIN)
    edges = [[low - 1] if low else [], keep, [high] if high < len(steps) else []]
    take = np.concatenate([np.asarray(edge, np.int64) for edge in edges])
    return steps[take], values[take], len(keep) < high - low


def _seen(steps: NDArray[np.int64], values: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    span = np.linspace(float(steps[0]), float(steps[-1]), bins + 1)[:-1]
    starts = np.unique(np.searchsorted(steps, span, "left"))
    ends = np.append(starts[1:], len(steps))
    finite = np.isfinite(values)
    keep = [starts, ends - 1]
    for extreme, beyond in ((np.minimum, np.inf), (np.maximum, -np.inf)):
        bounded = values if finite.all() else np.where(finite, values, beyond)
        best = np.repeat(extreme.reduceat(bounded, starts), ends - starts)
        keep.append(_first_of(bounded == best, starts, ends))
    keep.append(_first_of(~finite, starts, ends))
    return np.unique(np.concatenate(keep))


def _first_of(which: NDArray[np.bool_], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first marked place of each bin that has one."""
    places = np.flatnonzero(which)
    at = np.searchsorted(places, starts)
    there = at < len(places)
    first, end = places[at[there]], ends[there]
    return first[first < end]
