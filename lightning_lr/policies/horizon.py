"""How long a suggested rate is to be good for."""

from __future__ import annotations

import math
from typing import NamedTuple

MARGIN = 0.3
"""The share of the best trial's rate that is suggested where the run's length isn't known."""

POWERS = {"falls": {"sgd": 0.2, "adaptive": 0.1}, "stays": {"sgd": 0.25, "adaptive": 0.2}}
"""The rate that is best over n updates is too high for N: `(n / N) ** power` of it is suggested, with this power where
the rate falls at the run's end or stays, and for the optimizer's kind. On the tuning half of the kinds, 300 and 1,000
updates, shares from 0.28 to 0.5 that these powers give were the best of a grid of shares from 0.1 to 1."""

CARE = {"sgd": 1.0, "adaptive": 0.5}
"""See `Horizon.care`: too high a rate kills a net under SGD more often than under Adam."""

SURE = 3.0
"""So many standard errors make a change of the loss sure."""

STRONG, STRONGEST = 8.0, 20.0
WEAK, BEYOND = 1.4, 0.5
"""The power is `WEAK` times as high where the loss fell by `SURE` standard errors or less, as it is at `STRONG`, and
`BEYOND` times from `STRONGEST` on."""


class Horizon(NamedTuple):
    """How long the rate is to be good for.

    Args:
        updates: of the run; None where its length isn't known.
        power: see `POWERS`.
        care: how far down, of rates that can't be told apart, weak evidence takes the suggestion: 1 is to the lowest.
    """

    updates: float | None = None
    power: float = POWERS["stays"]["sgd"]
    care: float = 1.0

    def share(self, length: int, t: float = -STRONG) -> float:
        """The share of a rate that is best over so many updates, in (0, 1].

        Args:
            length: the updates of its trial.
            t: by how many standard errors the loss fell in it, below 0: the less, the lower the share.

        Example:
            >>> round(Horizon(1000, 0.22).share(13), 2), Horizon(None).share(13)
            (0.38, 0.3)
        """
        beyond = min(1.0, max(0.0, (-t - STRONG) / (STRONGEST - STRONG)))
        times = 1.0 + (WEAK - 1.0) * weakness(t) - (1.0 - BEYOND) * beyond
        if self.updates is None or not 0.0 < self.updates < math.inf:
            return MARGIN**times
        return min(1.0, (length / self.updates) ** (times * self.power))


def weakness(t: float) -> float:
    """How little a change of the loss by so many standard errors (below 0 where it fell) says, in [0, 1]."""
    return min(1.0, max(0.0, (STRONG + t) / (STRONG - SURE)))
