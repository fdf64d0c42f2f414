"""A series: the points of one scalar, in bounded memory."""

from __future__ import annotations

from array import array
from typing import Any

MOST = 4000
"""Points that are kept; twice as many may collect before they are thinned."""


class Series:
    """Points by step, thinned when there are too many, so that no step or spike of the curve is lost.

    Example:
        >>> series = Series(most=10)
        >>> for step in range(1000):
        ...     series.add(step, float(step == 500))
        >>> steps, values = series.points()
        >>> len(steps) <= 20, steps[values == 1.0].tolist()
        (True, [500])
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._steps, self._values = array("q"), array("d")

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: int, value: float) -> None:
        """Adds a point at the latest step or after it."""
        self._steps.append(step)
        self._values.append(value)
        if len(self._steps) > 2 * self._most:
            self._thin()

    def points(self) -> tuple[Any, Any]:
        """Copies of the steps, int64, and of the values, float64; shape (n,) each."""
        import numpy as np

        return np.array(self._steps, np.int64), np.array(self._values, np.float64)

    def _thin(self) -> None:
        from lightning_lr.statistics.thin import thin

        steps, values, _ = thin(*self.points(), self._most)
        self._steps, self._values = array("q", steps.tolist()), array("d", values.tolist())
