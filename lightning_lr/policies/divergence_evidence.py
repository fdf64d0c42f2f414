"""Divergence evidence: what speaks against the weights or the rate, and what against the data."""

from __future__ import annotations

import math

from lightning_lr.policies.divergence_state import DivergenceState, Memory, Signals
from lightning_lr.statistics.window import centre

HOT, BURNING = 0.16, 0.5
"""A drift `|w - w0| / |w0|` from the start, divided by the square root of the updates, above which weights are
overwritten rather than trained; above the second nothing can be learned meanwhile. Development runs at their tuned
rate: 0.03 to 0.10; at 10 times the rate 0.13 to 0.7 (about half of them still learn); at 100 times above 0.7."""

PATIENT = 24
"""Updates that a hot start (not a burning one) has to show that it learns all the same."""

HOT_AGAIN = 0.11
"""The same once a rate has failed in this run; 3 times the tuned rate lies between 0.05 and 0.18."""

DRIFT_AGE = 128
"""Updates after a start or a rewind in which drift is judged."""

LITTLE_GAINED, HALF_GAINED = 0.2, 0.5
"""Logarithms of loss. Drift alone is no fault in a run that learns: a fall of the loss by a fifth (for weights that
have moved by more than their own norm within 40 updates: by two fifths) excuses it."""

OVERWRITTEN, OVERWRITTEN_AGE = 1.0, 40

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


def trusted(state: DivergenceState) -> bool:
    """Was no update accepted since the last rewind? The weights are then the healthy ones."""
    memory = state.memory
    return memory.rewinds > 0 and memory.since_rewind == 0 and not state.losses


def hot(state: DivergenceState, signals: Signals, x: float) -> bool:
    """Are the weights overwritten faster than anything is learned?"""
    memory, drift, age = state.memory, signals.drift, signals.drift_age
    if drift is None or memory.initial is None or not 0 < age <= DRIFT_AGE:
        return False
    pace, again = drift / math.sqrt(age), memory.failed_rate < math.inf
    if pace <= (HOT_AGAIN if again else BURNING) and age < PATIENT:
        return False
    recent = (*memory.blocks[-1].losses, *state.losses, x)[-9:] if memory.blocks else (*state.losses, x)[-3:]
    gain = (memory.initial - centre(recent)) / memory.unit
    if pace > HOT_AGAIN and again:
        return gain < HALF_GAINED
    if pace > HOT and gain < LITTLE_GAINED:
        return True
    return drift > OVERWRITTEN and age <= OVERWRITTEN_AGE and gain < HALF_GAINED


def foreign(state: DivergenceState, signals: Signals) -> bool:
    """Was the weights' change measured, and is it not one that healthy updates make?"""
    change, pace = signals.weight_change, state.memory.pace
    if change is None or signals.weight_age < 1:
        return False
    if not math.isfinite(change):
        return True
    return change > STRANGE if pace == 0.0 else change / math.sqrt(signals.weight_age) > FOREIGN * pace


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
