"""Conclusion: what a trial that has ended says of the batch, the data and the weights."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from lightning_lr.policies import suspicion
from lightning_lr.policies.backoff import HELPLESS
from lightning_lr.policies.divergence_state import DivergenceState
from lightning_lr.policies.evidence import Evidence
from lightning_lr.policies.verdict import Outcome
from lightning_lr.statistics.window import centre


class Conclusion(NamedTuple):
    """The end of a trial.

    Args:
        outcome: what is to blame.
        words: the evidence.
        here: the median loss at the present weights; inf without a finite one.
        there: the median loss at those of the copy; None if it was not looked at.
        batches: updates that the trial has taken.
        absolves: whether lower rates have not helped, so that the rate is not to blame.
    """

    outcome: Outcome
    words: str
    here: float
    there: float | None
    batches: int
    absolves: bool = False

    @property
    def numbers(self) -> dict[str, Any]:
        """What a verdict says of it."""
        return {"outcome": self.outcome, "here": self.here, "there": self.there, "batches": self.batches}


def concluded(state: DivergenceState, evidence: Evidence, outcome: Outcome) -> Conclusion:
    """What follows from an outcome, given all that is known of the run.

    Weights are not to blame where nothing was learned yet, or where rewinds have not helped.
    """
    seen, mark = state.seen, state.newest if evidence.to == "newest" else state.best
    here = centre(evidence.here) if evidence.here else math.inf
    there = centre(evidence.there) if evidence.there else None
    what = "loss or gradient" if here == math.inf and evidence.why == "nonfinite" else "loss"
    # not when the copy was taken: readers count steps, and policies count updates
    if there is None:
        words = f"{what} {here:.3g} here ({len(evidence.here)} batches)"
    else:
        counts = f"{len(evidence.here)} and {len(evidence.there)} batches"
        words = f"{what} {here:.3g} here, {there:.3g} at the copy's weights ({counts})"
    absolves = False
    if outcome == "weights":
        learned = mark.seen.gained or (there is not None and there < (seen.initial or 0.0) - seen.margin)
        # it had learned, and is worse than untrained: its weights are no longer measured then
        lost = min(evidence.here, default=math.inf) >= evidence.began and state.rate.rewinds < HELPLESS
        large = suspicion.LARGE * (2.0 if evidence.why == "level" else 1.0)
        if not (learned or lost) and here < math.inf and seen.growth <= large:
            # nothing was learned yet, and the weights are no larger: a loss that rises by its nature
            outcome = "data"
        elif mark.seen.gained and here < math.inf and state.rate.rewinds >= HELPLESS:
            outcome, absolves = "data", True
            words += f", and {state.rate.rewinds} rewinds have not helped"
    return Conclusion(outcome, words, here, there, evidence.batches, absolves)
