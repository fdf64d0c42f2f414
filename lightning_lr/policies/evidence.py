"""Evidence: what a trial shows that runs at the present weights and at those of a copy in turn."""

from __future__ import annotations

import math
from typing import NamedTuple

from lightning_lr.policies.suspicion import Reason
from lightning_lr.policies.verdict import Outcome, Side
from lightning_lr.statistics.window import centre

MOST = 8
"""The most updates at either weights. Two sets of eight from one distribution are parted as `CLEAR` asks once in 50,
and two sets of four fully, as is asked of them, once in 70."""

CLEAR = 0.8
"""The share of pairs in which the copy must have the lower loss (Mann & Whitney, Annals of Mathematical Statistics 18,
1947)."""

HOPELESS = (0.25, 0.25, 0.25, 0.25, 0.5, 0.5, 0.65, 0.65, 1.0)
"""By the number of updates at either weights: the share of pairs up to which a copy counts as no better."""


HOLD = 32
"""The most updates for which bad data is waited out. Without it 9 of 15 tuning runs with 30 bad batches ended badly."""


class Evidence(NamedTuple):
    """What a trial under way has shown so far.

    Args:
        why: the suspicion that began it.
        usual: losses up to this are usual.
        margin: a difference between the two that matters.
        far: losses above this are beyond everything that the run has met.
        began: the level that the run began at; inf if nothing was learned since.
        worse: the share of pairs from which on the start's weights count as no worse.
        to: the copy that is looked at.
        both: whether the best copy is another one than the newest, and not looked at yet.
        here: losses at the present weights.
        there: those at the copy.
        batches: updates that it has taken.
        held: how many of them were spent waiting for bad data to end.
        waiting: whether it is waiting for bad data to end, at the copy.
    """

    why: Reason
    usual: float
    margin: float
    far: float
    began: float
    worse: float
    to: Side
    both: bool
    here: tuple[float, ...] = ()
    there: tuple[float, ...] = ()
    batches: int = 1
    held: int = 0
    waiting: bool = False

    def after(self, side: Side, loss: float) -> Evidence:
        """The evidence after an update's batches ran at `side`; a loss that is not finite counts as infinite."""
        loss = loss if math.isfinite(loss) else math.inf
        now = self._replace(batches=self.batches + 1)
        if side == "present":
            return now._replace(here=(*now.here, loss))
        there = (*now.there, loss)
        if not now.waiting:
            return now._replace(there=there)
        now = now._replace(there=there, held=now.held + 1)
        if max(there[-2:]) <= now.usual:
            # the data is as usual again: what about the weights?
            now = now._replace(waiting=False, here=(), there=there[-2:])
        return now

    @property
    def next_side(self) -> Side:
        """Where the next update's batches are to be run: twice here, twice there, and then in turn."""
        here, there = len(self.here), len(self.there)
        if self.waiting:
            return self.to
        return "present" if here < 2 or 2 <= here <= there else self.to

    def judged(self) -> tuple[Evidence, Outcome]:
        """What the trial has shown; empty while it goes on."""
        here, there = self.here, self.there
        if self.waiting:
            return self, "data" if self.held >= HOLD else ""
        if len(here) < 2:
            return self, ""
        if self.why != "start" and max(here) <= self.usual:
            return self, "passed"
        count = min(len(here), len(there))
        if count < 2:
            return self, ""
        if count >= MOST // 2 and self.why != "start" and centre(here) <= self.usual:
            return self, "passed"
        middle = centre(here), centre(there)
        better = middle[0] - middle[1] if middle[1] < math.inf else 0.0
        share = sum(y < x for x in here for y in there) / (len(here) * len(there))
        plain = share == 1.0 and (count >= MOST // 2 or (min(here) >= self.began and max(there) <= self.usual))
        clear = count >= MOST and share >= CLEAR
        if min(here) == math.inf > max(there) or ((plain or clear) and better >= self.margin / 2.0):
            if self.both and middle[1] > self.usual:
                # better, but not good: the newest copy may be broken too
                return self._replace(to="best", both=False, here=here[-2:], there=()), ""
            return self, "weights"
        start = self.why == "start"
        if (count < MOST and share > 0.1) if start else share > HOPELESS[min(count, MOST)]:
            return self, ""
        if self.both:
            return self._replace(to="best", both=False, here=here[-2:], there=()), ""
        if start and share >= self.worse:
            # the weights have become many times as large, and say no more than those of the start
            return self, "weights"
        if min(*here, *there) > self.far and self.why != "nonfinite" and not self.held:
            return self._replace(waiting=True), ""
        return self, "data"
