"""The horizon of a suggested rate: how long it must be good for."""

from __future__ import annotations

import math
from typing import NamedTuple

MARGIN = 0.3
"""The share of the best trial's rate that is suggested if the length of the run isn't known."""

POWERS = {"falls": {"sgd": 0.2, "adaptive": 0.1}, "stays": {"sgd": 0.25, "adaptive": 0.2}}
"""The rate that is best over n updates is too high for N updates: `(n / N) ** power` of it is suggested. The power
depends on whether the rate falls at the end of the run or stays, and on the kind of optimizer. On the tuning half of
the tasks, with 300 and 1,000 updates, the shares of 0.28 to 0.5 that these powers give were the best of a grid from 0.1
to 1."""

CARE = {"sgd": 1.0, "adaptive": 0.5}
"""See `Horizon.care`: a rate that is too high kills a network more often under SGD than under Adam."""

SURE = 3.0
"""A change of the loss by this many standard errors is sure."""

STRONG, STRONGEST = 8.0, 20.0
WEAK, BEYOND = 1.4, 0.5
"""The power is multiplied by `WEAK` if the loss fell by `SURE` standard errors or less, by 1 at `STRONG`, and by
`BEYOND` from `STRONGEST` on."""


class Horizon(NamedTuple):
    """How long a rate must be good for, and how carefully it is chosen.

    Args:
        updates: those of the run; None if its length isn't known.
        power: see `POWERS`.
        care: how far weak evidence moves the suggestion down among the rates that can't be told apart, a ratio: 1 is
            all the way to the lowest.
    """

    updates: float | None = None
    power: float = POWERS["stays"]["sgd"]
    care: float = 1.0

    def share(self, length: int, t: float = -STRONG) -> float:
        """The share that is suggested of a rate that is best over `length` updates, in (0, 1].

        Args:
            length: the updates of its trial.
            t: the change of the loss in it, in standard errors, below 0 if it fell: the less it fell, the lower the
                share.

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
    """How weak the evidence of a change of the loss by `t` standard errors (below 0 if it fell) is, in [0, 1]."""
    return min(1.0, max(0.0, (STRONG + t) / (STRONG - SURE)))
