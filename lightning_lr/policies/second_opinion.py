"""A second opinion on the rate of a run that is under way."""

from __future__ import annotations

import math

from lightning_lr.policies.horizon import SURE
from lightning_lr.policies.suggestion import Suggestion
from lightning_lr.policies.tried_rates import STEP, TriedRates

MATTERS = 0.01
"""A gain of less than this share of the loss is no reason to raise the rate."""


def second_opinion(trials: TriedRates, *, low: float, high: float) -> tuple[float | None, Suggestion]:
    """Decides whether the present rate, which is that of the first trial, is still right.

    A rate that raises the loss over the next updates is too high: it is replaced by a third or a ninth of itself, if
    that doesn't raise the loss. A rate that is beaten even by nine times itself is too low, and is tripled. If three
    times the rate did better over a few updates, that would mean nothing, because a rate for many updates is chosen
    lower on purpose. Nothing else changes the rate.

    Args:
        trials: the trials so far; the first is that of the present rate.
        low: the lowest rate that may be tried.
        high: the highest.

    Returns:
        The rate to try next, absolute, or None if the sweep is over; and what is suggested if it is.
    """
    present, *others = trials.done
    tried, rate = f"change of the loss at {trials.words()}", present.rate
    fell = trials.against(present).t <= -SURE
    words = f"second opinion: {rate:.3g} is kept ({tried})"
    kept = Suggestion(rate, words, True if fell else None, rate, rate, 1.0)
    if trials.hurts(present):
        last = trials.done[-1]
        if others and not trials.hurts(last):
            words = f"second opinion: {rate:.3g} raises the loss, and {last.rate:.3g} doesn't ({tried})"
            return None, Suggestion(last.rate, words, True, last.rate, last.rate, 1.0)
        lower = last.rate / STEP
        return (lower if len(others) < 2 and lower >= low else None), kept
    far = rate * STEP**2
    if not others:
        return (far if far <= high else None), kept
    gain, fell = trials.against(others[0], present), trials.against(others[0])
    # on a plateau a gain may be certain, and still next to nothing
    matters = abs(gain.mean) > MATTERS * abs(math.fsum(trials.base)) / len(trials.base)
    if gain.t < -SURE and fell.t < -SURE and matters:
        raised = rate * STEP
        words = f"second opinion: {far:.3g} is better beyond doubt than {rate:.3g}, so {raised:.3g} ({tried})"
        return None, Suggestion(raised, words, True, rate, far, 1.0)
    return None, kept
