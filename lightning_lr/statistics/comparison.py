"""A comparison: by how much do two lists of losses differ, and is that more than chance?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

ROUNDING = 1e-6
"""The rounding error of a loss, as a share of it: no difference is known better than this."""


class Difference(NamedTuple):
    """A mean difference and its standard error, in the loss's unit.

    Args:
        mean: below 0 where the first list is lower.
        error: one standard error, >= 0.
    """

    mean: float
    error: float

    @property
    def t(self) -> float:
        """The mean in standard errors; infinite where the error is 0."""
        if self.error == 0.0:
            return math.copysign(math.inf, self.mean) if self.mean else 0.0
        return self.mean / self.error


def compare(losses: Sequence[float], others: Sequence[float], *, paired: bool) -> Difference:
    """Compares the first list with the second.

    Args:
        losses: finite, at least two.
        others: finite, equally many.
        paired: whether the n-th losses of both lists are of the same batch.

    Example:
        >>> compare([1.1, 2.1, 3.2], [1.0, 2.0, 3.0], paired=True).t > 3.0
        True
        >>> compare([1.1, 2.1, 3.2], [1.0, 2.0, 3.0], paired=False).t < 1.0
        True
    """
    count = len(losses)
    steps = [a - b for a, b in zip(losses, others, strict=True)]
    mean = math.fsum(steps) / count
    spread = variance(steps) if paired else variance(losses) + variance(others)
    size = max(abs(math.fsum(losses)), abs(math.fsum(others))) / count
    return Difference(mean, max(math.sqrt(spread / count), ROUNDING * size))


def variance(values: Sequence[float]) -> float:
    """The sample variance of at least two values."""
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
