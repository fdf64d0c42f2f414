"""Divergence evidence: what speaks against the weights or the rate, and what against the data."""

from __future__ import annotations

import math

from lightning_lr.policies.divergence_state import DivergenceState, Memory, Signals
from lightning_lr.statistics.window import centre, spread

HOT = 0.16
"""A drift `|w - w0| / |w0|` from the start, divided by the square root of the updates, above which a run is suspected
of overwriting its weights instead of training them. It convicts nobody: of the *rate runs* at their best rate, 27
linear nets had 0.05 to 4 at some time (median 0.29), 61 other nets 0.03 to 0.56 (median 0.13).

The *rate runs*, also below, are the development runs for dead starts: digits, digits with 30% wrong labels and
diabetes, linear nets and nets of 8 to 64 hidden units, batches of 1 to 32, SGD and AdamW, seeds 0 and 1, and the seven
tasks of `benchmarks/divergence.py` with seed 61, from a tenth (those from once) to 1,000 times the best rate; 247 of
them at no more than the best."""

PATIENT = 24
"""Updates before the loss is heard. At 18 five of the 35 rate runs that ended well at three times the best rate were
judged dead, at 28 none; what explodes within them has rules of its own."""

DRIFT_AGE = 128
"""Updates after a start or a rewind in which drift is judged."""

LITTLE_GAINED = 0.2
"""Logarithms of loss: a fall by a fifth excuses any drift."""

DOUBT = 2.5
"""Standard errors by which the gain must be less than that, before any rate has failed in this run. With 0 it was so in
9 of 247 healthy rate runs, with 1 in 4, with 2 in one, with 2.5 and 3 in none."""

FRESH_NOISE = 0.5
"""The noise of a loss at fresh weights, as a share of that of later ones: a net that says little errs alike on all."""

FOREIGN = 4.0
"""Weights that have moved this many times further than healthy updates ever moved them were not moved by those."""

STRANGE = 0.25
"""The same while no healthy change is known: a relative change."""

RAISED, HIGHER = 1.5, 1.2
"""A rate this many times the one of the best level, and this many times every rate that was healthy, is new territory,
and suspected first when something goes wrong in it. The second keeps warm restarts and cycles out of suspicion."""

CLIMBS = 3
"""Reviews in a row that must find the loss far up: 24 updates."""

SUDDEN = 0.6
"""A climb of which this share came between two neighbouring sets of four losses, with nothing strange about the
weights, came with the data."""


def trusted(state: DivergenceState, signals: Signals) -> bool:
    """Was no update accepted since the last rewind? The weights are then healthy, if nobody else has broken them."""
    memory, change = state.memory, signals.weight_change
    return (
        memory.rewinds > 0
        and memory.since_rewind == 0
        and not state.losses
        and (change is None or (math.isfinite(change) and change <= STRANGE))
    )


def overwriting(signals: Signals) -> bool:
    """Do the weights move faster than most training moves them?"""
    drift, age = signals.drift, signals.drift_age
    return drift is not None and age > 0 and not drift <= HOT * math.sqrt(age)


def hot(state: DivergenceState, signals: Signals, x: float) -> bool:
    """Are the weights overwritten, and is nothing learned meanwhile?

    Drift alone is no fault: how far sound training moves the weights depends on how large they began. The loss is the
    judge, and the noise speaks for the run: the later half of the losses must lie above what counts as learned, by
    `DOUBT` standard errors, and must not be falling. A run with losses below zero is not judged, for want of a scale.
    """
    memory, age = state.memory, signals.drift_age
    if not PATIENT <= age <= DRIFT_AGE or not overwriting(signals):
        return False
    if memory.initial is None or memory.first is None or memory.linear:
        return False
    losses = [*(loss for block in memory.blocks for loss in block.losses), *state.losses, x][-(age // 2) :]
    count = len(losses)
    if count < PATIENT // 2:
        return False
    # the second and third loss may already be those of an explosion
    begin, level, noise = min(memory.initial, memory.first), centre(losses), spread(losses)
    doubt = 0.0 if memory.failed_rate < math.inf else DOUBT
    if begin - level + doubt * noise * math.sqrt(1.25**2 / count + FRESH_NOISE**2) >= LITTLE_GAINED:
        return False
    older, younger = centre(losses[: count // 2]), centre(losses[count // 2 :])
    return younger >= begin or older - younger <= 1.25 * noise * 2.0 / math.sqrt(count)


def foreign(state: DivergenceState, signals: Signals) -> bool:
    """Was the weights' change measured, and is it not one that healthy updates make?"""
    change, pace = signals.weight_change, state.memory.pace
    if change is None:
        return False
    if not math.isfinite(change):
        return True
    return (
        change > STRANGE
        if pace == 0.0 or signals.weight_age < 1
        else change / math.sqrt(signals.weight_age) > FOREIGN * pace
    )


def known(state: DivergenceState, signals: Signals) -> bool:
    """Is there a healthy change to compare with, or no need of one?"""
    return state.memory.pace > 0.0 or (signals.weight_change is not None and not math.isfinite(signals.weight_change))


def strange(state: DivergenceState, signals: Signals) -> bool:
    """Are the weights foreign, or the rate far above the one of the best level?"""
    memory = state.memory
    rate = max(state.rate, min(signals.rate, memory.cap))
    return new_territory(memory, rate) or foreign(state, signals)


def in_order(state: DivergenceState, signals: Signals) -> bool:
    """Was the weights' change measured, and is nothing strange about it or the rate?"""
    return signals.weight_change is not None and not strange(state, signals)


def rising(state: DivergenceState, signals: Signals) -> bool:
    """Is the rate far above all that were healthy?"""
    return 0.0 < RAISED * state.memory.top_rate < min(signals.rate, state.memory.cap)


def new_territory(memory: Memory, rate: float, times: float = RAISED) -> bool:
    """Is the rate far above the one of the best level, and above all that were healthy?"""
    return 0.0 < times * memory.best_rate < rate and rate > HIGHER * memory.top_rate


def strange_blocks(memory: Memory) -> bool:
    """Was the rate or a weight change strange since the last healthy update?"""
    return any(
        new_territory(memory, block.rate) or block.change > FOREIGN * memory.pace
        for block in memory.blocks
        if block.update > memory.proven
    )


def sudden(memory: Memory, climb: float) -> bool:
    """Did most of the climb come between two neighbouring updates?"""
    losses = [x for block in memory.blocks[-CLIMBS - 3 :] for x in block.losses]
    steps = (centre(losses[i : i + 4]) - centre(losses[i - 4 : i]) for i in range(4, len(losses) - 3))
    return max(steps, default=0.0) > SUDDEN * climb
