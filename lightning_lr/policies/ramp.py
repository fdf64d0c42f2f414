"""The ramp of a sweep: rates that rise from update to update until the loss blows up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from lightning_lr.statistics.level import level_and_noise

LOW_POINTS, LOW_DECADES = 1 / 3, 4 / 9
"""The first third of the ramp's points crosses the lower 4/9 of the decades, where there is only noise to measure."""

BLOWN, BLOWN_AT_ONCE = 7.0, 25.0
"""The ramp ends when the loss is this many standard deviations above the start's on the same batch: by `BLOWN` twice in
a row, or by `BLOWN_AT_ONCE` once."""

GAINED, TURNED = 2.0, 0.25
"""A ramp has turned when the loss had fallen by `GAINED` standard deviations, and has risen again by half of that and
`TURNED` more."""

QUIET = 2.0
"""This many times the changes at the lowest rates are added to both, because these changes are chance alone."""

NOISE_POINTS = 8
"""On a plain ramp the level and the noise are those of this many first points."""


class Ramp(NamedTuple):
    """Rates that rise geometrically.

    Args:
        low: the first rate, absolute.
        high: the last one, absolute.
        steps: the updates, if nothing blows up.
        coarse: whether it hurries over the lowest rates, see `LOW_POINTS`; otherwise all points are equally far apart.
    """

    low: float
    high: float
    steps: int
    coarse: bool

    @property
    def lowest(self) -> int:
        """How many of the first points of a coarse ramp show nothing but noise."""
        return max(1, round(LOW_POINTS * self.steps))

    def rate(self, index: int) -> float:
        """The rate of update `index` (from 0), absolute.

        Example:
            >>> [round(Ramp(0.001, 1.0, 4, False).rate(index), 3) for index in range(4)]
            [0.001, 0.01, 0.1, 1.0]
        """
        last = self.steps - 1
        at = index / last
        if self.coarse:
            low = max(1, round(LOW_POINTS * self.steps) - 1)
            at = LOW_DECADES * index / low
            if index > low:
                at = LOW_DECADES + (1.0 - LOW_DECADES) * (index - low) / (last - low)
        return self.low * (self.high / self.low) ** at

    def turned(self, changes: Sequence[float], noise: float) -> bool:
        """Whether the loss has lost half of what it had gained.

        A dead network can sit below the level that it started from, so a ramp that only loses its gain has blown up.

        Args:
            changes: what each update's loss lies above the start's loss on the same batch.
            noise: the standard deviation of the start's losses.
        """
        risen, best = changes[-1], min(changes)
        quiet = QUIET * max(map(abs, changes[: self.lowest]))
        return best < -GAINED * noise - quiet and risen > 0.5 * best + TURNED * noise + quiet

    def calm(self, losses: Sequence[float]) -> bool:
        """Whether a plain ramp goes on: it ends where the loss is far above its level twice in a row, or at once."""
        if not all(map(math.isfinite, losses)) or len(losses) < 4:
            return all(map(math.isfinite, losses))
        points = min(NOISE_POINTS, self.steps // 2 + 1, len(losses) - 1)
        level, noise = level_and_noise(losses[:points])
        at_once = BLOWN_AT_ONCE if len(losses) > NOISE_POINTS else 4 * BLOWN_AT_ONCE
        twice = all(loss > level + BLOWN * noise for loss in losses[-2:])
        return not twice and losses[-1] <= level + at_once * noise
