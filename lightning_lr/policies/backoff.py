"""Backoff: the learning rate after weights have turned out to be broken, and how it grows back."""

from __future__ import annotations

import math
from typing import NamedTuple

RAISED = 1.5
"""A rate this many times the highest healthy one is new territory, and is the first to blame."""

LASTING = 200
"""Healthy updates that make a rewind's progress lasting, and a rate known; in as many a lowered rate doubles."""

STEPS = 3
"""The most backoffs at once."""

START, BLOWN, MOST = 2.5, 1.25, 9.0
"""Backoffs after a start that failed: so many, more for each doubling of the weights, and the most. By how much a rate
has blown up the weights tells how far it was too high: of 87 tuning runs at ten to a thousand times their best rate 69
are rescued, and 57 with four backoffs for all. The tuned rate lies about a decade below the first one that overwrites
the weights (Godbole et al., "Deep Learning Tuning Playbook")."""

HELPLESS = 3
"""Rewinds in a row from finite losses, each to a lower rate, after which the loss rises by its nature: a target network
that moves on, say."""

RETRY = 2000
"""Calm updates after which a ceiling is tried again one backoff higher; twice as many after each failure at it."""


class Backoff(NamedTuple):
    """What is known about rates, all of them without the guard's own factor unless said otherwise.

    Args:
        healthy: the highest effective rate at which `LASTING` updates were healthy, or that the schedule plans, and at
            which none has failed since; 0.0 for none.
        recent: the highest effective rate since the best copy.
        cap: the highest effective rate allowed now; inf for none.
        ceiling: what the cap may grow to; inf for none.
        since: accepted updates since the last rewind, or since the start.
        calm: accepted updates since the ceiling was set.
        rewinds: in a row, without lasting progress.
        failures: that set the ceiling.
        above: updates in a row at a rate above `healthy`.
        before: the cap before the rewinds in a row.
    """

    healthy: float = 0.0
    recent: float = 0.0
    cap: float = math.inf
    ceiling: float = math.inf
    since: int = 0
    calm: int = 0
    rewinds: int = 0
    failures: int = 0
    above: int = 0
    before: float = math.inf

    def factor(self, rate: float) -> float:
        """What the rate is multiplied by."""
        return 1.0 if self.cap >= rate else self.cap / rate

    def accepted(self, rate: float, ratio: float, *, grow: bool) -> Backoff:
        """What is known after an update was accepted at `rate`; with `grow` nothing speaks against it."""
        if rate <= 0.0:
            # it moves nothing: no rate is known from it
            return self
        used = min(rate, self.cap)
        cap, ceiling, count = self.cap, self.ceiling, self.calm + 1
        since = self.since + 1
        if grow and ceiling < math.inf and count >= RETRY * 2 ** min(self.failures, 8):
            ceiling, count = ceiling / ratio, 0
            if ceiling >= 2.0 * rate:
                ceiling = math.inf
        if grow and cap < ceiling:
            cap = min(cap * 2.0 ** (1.0 / LASTING), ceiling)
            if cap >= rate * RAISED and ceiling == math.inf:
                cap = math.inf
        lasting = since >= LASTING
        above = self.above + 1 if used > self.healthy else 0
        return Backoff(
            used if above >= LASTING and grow else self.healthy, max(self.recent, used), cap, ceiling, since, count,
            0 if lasting and grow else self.rewinds, self.failures, above, self.before,
        )  # fmt: skip

    def failed(
        self,
        rate: float,
        ratio: float,
        *,
        learned: bool,
        sudden: bool = False,
        all_lost: bool = False,
        growth: float = 1.0,
    ) -> tuple[Backoff, bool]:
        """The weights that `rate` led to were given up.

        Args:
            rate: the one at the failure.
            ratio: of the rate after a failure to the rate before.
            learned: whether the weights that come back had learned anything.
            sudden: whether the others were not finite from one update to the next.
            all_lost: whether they had lost all that was learned.
            growth: by how many times they had grown since the start, >= 1.

        Returns:
            What is known now, and whether the rate was held to blame.
        """
        fault = max(min(rate, self.cap), self.recent)
        rewinds = self.rewinds + 1
        raised = 0.0 < RAISED * self.healthy < fault
        now = self._replace(
            recent=0.0, since=0, rewinds=rewinds, above=0, before=self.before if self.rewinds else self.cap
        )
        if fault <= 0.0:
            return now, False
        if learned and self.healthy >= fault and (self.since >= LASTING or (sudden and not self.rewinds)):
            # a flipped bit, say: one failure in hundreds of updates is none of a rate's that was healthy for long
            return now, False
        if not learned:
            cap = fault * ratio ** min(START + BLOWN * math.log2(growth), MOST)
            ceiling = cap
        elif raised and rewinds == 1:
            cap = ceiling = self.healthy
        else:
            steps = STEPS if all_lost and not raised else min(rewinds - raised, STEPS)
            cap = (self.healthy if raised else fault) * ratio**steps
            ceiling = cap if all_lost else fault * ratio
        ceiling = max(cap, min(self.ceiling, ceiling))
        healthy = min(self.healthy, cap)
        return now._replace(cap=cap, ceiling=ceiling, healthy=healthy, calm=0, failures=self.failures + 1), True

    def held(self, rate: float) -> Backoff:
        """What is known after a level was lost and no copy is better: a rate above any healthy one is held at that."""
        used = min(rate, self.cap)
        if not 0.0 < RAISED * self.healthy < used:
            return self
        return self._replace(cap=self.healthy, ceiling=self.healthy, recent=0.0, calm=0, above=0)

    def absolved(self) -> Backoff:
        """Lower and lower rates have not helped: it is none of the rate's, which grows back to where it was."""
        return self._replace(ceiling=self.before, rewinds=0, since=0, recent=0.0)
