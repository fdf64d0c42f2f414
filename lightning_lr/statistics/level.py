"""The level of a series that stands still, and its noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

HUGE = 1e100
"""A loss of this magnitude is as good as infinite (no float of 32 bits reaches it), and its square still isn't."""


def level_and_noise(losses: Sequence[float]) -> tuple[float, float]:
    """The median of losses at unchanged weights, and their standard deviation (at least 1% of the median).

    A loss further than ten median deviations from the median is an outlier and doesn't count as noise.

    Args:
        losses: of magnitude below `HUGE`, at least one.
    """
    level = _median(losses)
    floor = max(0.01 * abs(level), 1e-12)
    reach = 10.0 * max(_median([abs(loss - level) for loss in losses]), floor)
    usual = [loss for loss in losses if abs(loss - level) <= reach]
    mean = math.fsum(usual) / len(usual)
    noise = math.sqrt(math.fsum((loss - mean) ** 2 for loss in usual) / len(usual))
    return level, max(noise, floor)


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else 0.5 * (ordered[middle - 1] + ordered[middle])
