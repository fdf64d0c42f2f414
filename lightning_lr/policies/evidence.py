"""Evidence: a trial at the present weights and at those of a copy in turn, and what it has shown."""

from __future__ import annotations

import math
from typing import NamedTuple

from lightning_lr.policies.divergence_state import Outcome, Side
from lightning_lr.policies.suspicion import Reason
from lightning_lr.statistics.window import centre

MOST = 8
"""Updates at either weights at most. Two sets of eight that come from one distribution are parted as `CLEAR` asks once
in 150; two sets of four as fully as asked then once in 70."""

CLEAR = 0.8
"""The share of pairs in which the copy must have the lower loss."""

TRAINED = 16
"""Updates of a trial that trains before it is looked at."""

CANDIDATES = 2
"""Rates that such a trial tries, one after the other."""

HOLD = 32
"""The most updates for which bad data is waited out."""


class Trying(NamedTuple):
    """A trial under way.

    Args:
        why: it was begun.
        usual: up to which losses are as usual.
        margin: the difference that matters.
        far: above which a loss is beyond everything that the run has met.
        to: the copy that is looked at, or `trained`.
        both: whether the best copy is another one than the newest.
        here: losses at the present weights.
        there: those at the copy.
        batches: updates that it has taken.
        held: of them, those for which bad data was waited out.
        trained: updates made to the trained state.
        rate: that they are made at.
    """

    why: Reason
    usual: float
    margin: float
    far: float
    to: Side
    both: bool
    here: tuple[float, ...] = ()
    there: tuple[float, ...] = ()
    batches: int = 0
    held: int = 0
    trained: int = 0
    rate: float = 0.0
    length: int = TRAINED
    step: float = 0.125
    candidates: int = 0
    base: float = math.inf
    waiting: bool = False

    @property
    def training(self) -> bool:
        return self.to == "trained" and self.trained < self.length


def begin(why: Reason, usual: float, margin: float, far: float, *, newest: bool, both: bool, loss: float, rate: float, asked: int) -> Trying:
    """A trial that has seen one loss at the present weights; `newest`: whether it begins with the newest copy."""
    to: Side = "newest" if newest and why != "start" else "best"
    here = (math.inf, math.inf) if why == "nonfinite" else (loss,)
    return Trying(why, usual, margin, far, to, both and newest, here, rate=rate, batches=1, length=TRAINED * 2 ** min(max(asked - 1, 0), 3), candidates=0)


def seen(trying: Trying, side: Side, loss: float) -> Trying:
    """The same after an update's batches at `side`; a loss that is not finite counts as infinite."""
    loss = loss if math.isfinite(loss) else math.inf
    trying = trying._replace(batches=trying.batches + 1)
    if side == "present":
        return trying._replace(here=(*trying.here, loss))
    if trying.training:
        return trying._replace(trained=trying.trained + 1)
    there = (*trying.there, loss)
    if trying.waiting:
        trying = trying._replace(held=trying.held + 1)
        if all(x <= trying.usual for x in there[-2:]) and len(there) >= 2:
            # the data is as usual again: what about the weights?
            return trying._replace(waiting=False, here=(), there=there[-2:])
    return trying._replace(there=there)


def next_side(trying: Trying) -> Side:
    """Where the next update's batches are to be run."""
    if trying.waiting or trying.training:
        return trying.to
    here, there = len(trying.here), len(trying.there)
    return "present" if here < 2 or (here <= there and here % 2 == 0) or (here < there and here % 2) else trying.to


def judged(trying: Trying) -> tuple[Trying, Outcome]:
    """What the trial has shown; nothing yet: it goes on."""
    here, there = trying.here, trying.there
    if trying.training:
        return trying, ""
    if trying.waiting:
        if trying.held < HOLD:
            return trying, ""
        return trying, "data"
    if len(here) < 2:
        return trying, ""
    if trying.why != "start" and all(x <= trying.usual for x in here):
        return trying, "passed"
    if len(there) < 2:
        return trying, ""
    pairs = [(x, y) for x in here for y in there]
    share = sum(y < x for x, y in pairs) / len(pairs)
    better = _difference(here, there)
    count = min(len(here), len(there))
    if trying.to == "trained" and centre(there) > trying.base - trying.margin / 2.0:
        better = 0.0  # it has learned nothing either
    if count >= 2 and math.inf in here and all(map(math.isfinite, there)) and min(here) > max(there):
        return trying, "rate" if trying.to == "trained" else "weights"
    hopeless = share <= (0.25, 0.25, 0.25, 0.25, 0.5, 0.5, 0.65, 0.65, 1.0)[min(count, MOST)]
    if count >= 4 and share == 1.0 and better >= trying.margin / 2.0:
        return trying, "rate" if trying.to == "trained" else "weights"
    if count >= MOST and share >= CLEAR and better >= trying.margin / 2.0:
        return trying, "rate" if trying.to == "trained" else "weights"
    if hopeless or count >= MOST:
        if trying.why == "start" and trying.to == "best" and better >= -trying.margin / 2.0:
            # the weights have become many times as large, and say no more than those of the start
            return trying, "weights"
        if trying.why == "start" and trying.candidates:
            # no worse than at the start, and no better: would a lower rate do better?
            rate = trying.rate * trying.step
            base = trying.base if trying.to == "trained" else centre(there)
            return trying._replace(
                to="trained", candidates=trying.candidates - 1, here=(), there=(), trained=0, rate=rate, base=base
            ), ""
        if trying.both:
            return trying._replace(to="best", both=False, there=()), ""
        if trying.why != "start" and centre(here) <= trying.usual:
            return trying, "passed"
        if trying.why not in ("start", "nonfinite") and min(*here, *there) > trying.far:
            return trying._replace(waiting=True), ""
        return trying, "data"
    return trying, ""


def _difference(here: tuple[float, ...], there: tuple[float, ...]) -> float:
    """By how much the copy is better: between the medians."""
    a, b = centre(here), centre(there)
    return math.inf if a == math.inf and b < math.inf else 0.0 if a == math.inf else a - b
