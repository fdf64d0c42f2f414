"""Divergence limits: above which loss, and which gradient norm, an update is no longer healthy.

Sources named below: *development runs* are a classifier with 20% label noise, a regressor with Student-t(3) noise, a
byte level transformer and a convolutional net on digits, each with SGD or AdamW, two to seven seeds; no other task,
seed or fault size took part in setting a constant.
"""

from __future__ import annotations

import math

from lightning_lr.policies.divergence_state import DivergenceState, Memory
from lightning_lr.statistics.window import centre, spread, upper_tail

REVIEW = 8
"""Accepted updates between two reviews: short against all delays that matter, long enough for a median, and the
sorting that a review needs costs little when divided by 8."""

ARMED_BLOCKS = 4
"""Reviews before the window's own tail is believed: 32 values, of which three make up the tail."""

EARLY_SPIKE = math.log(100.0)
"""How far above the largest loss so far a single one may lie while the tail is unknown. A mean of 32 squared
Student-t(3) errors is above 50 times its median once in 2,500 batches."""

EARLY_ALARM = math.log(10.0)
"""How far above the level of the first losses two losses in a row may lie within the first review."""

EARLY_NORM = math.log(1000.0)
"""The same for single gradient norms, which change more than losses in a run's first updates."""

SPIKE_FLOOR = math.log(3.0)
"""A loss less than 3 times the beginning of the tail is no spike, however light the tail: 2 is what KillLossSpike
takes for five losses in a row, and curriculum steps or longer sequences reach it."""

NORM_FLOOR = math.log(20.0)
"""A gradient less than 20 times the beginning of the tail is left to clipping."""

ALARM_FLOOR = math.log(1.25)
"""A rise by less than a quarter is never an alarm: cyclic rates in the development runs raised the level by up to a
fifth."""

ALARM_TAILS = 3.0
"""A value this many mean excesses into the tail comes once in 200 updates; five in a row never by chance."""

ZERO = 1e-4
"""Losses below this share of the first one count as equal: a run that has fitted its data may end at any tiny loss, or
at 0."""

TINY = 1e-30
"""What a gradient norm of zero counts as."""


def transform(memory: Memory, loss: float) -> float:
    """The loss in the unit in which it is compared: its logarithm, or itself in a run that has losses below zero."""
    return loss if memory.linear else math.log(loss + memory.zero)


def in_loss_unit(memory: Memory, value: float) -> float | None:
    """The inverse of `transform`; None where it is not finite."""
    if not math.isfinite(value) or value > 700.0:
        return None
    return value if memory.linear else math.exp(value) - memory.zero


def unlimited(state: DivergenceState, memory: Memory) -> DivergenceState:
    """The state without limits and without losses: what comes next is learned from nothing."""
    return DivergenceState(update=state.update, memory=memory)


def early(state: DivergenceState) -> DivergenceState:
    """Sets the limits while the first block still fills."""
    memory = state.memory
    if memory.linear:
        memory = memory._replace(unit=max(10.0 * spread(state.losses), abs(centre(state.losses)), TINY))
    initial, first = centre(state.losses[:3]), memory.first
    if not memory.since_rewind:
        first = state.losses[0]
    elif not memory.all_rewinds:
        # harder data, as far as one can tell; after a failed rate it may as well be the weights
        first = None
    return state._replace(
        loss_spike=max(state.losses) + EARLY_SPIKE * memory.unit,
        loss_alarm=initial + EARLY_ALARM * memory.unit,
        norm_spike=max(state.norms) + EARLY_NORM,
        memory=memory._replace(initial=initial, first=first),
    )


def beginning(memory: Memory) -> float:
    """The highest level that the run may have begun at: a rate too high can fit two batches before it explodes."""
    levels = [level for level in (memory.initial, memory.first) if level is not None]
    return max(levels, default=math.inf)


def restarted(state: DivergenceState) -> DivergenceState:
    """Sets the limits when a rewind has left no block, from the level that the run began at."""
    memory = state.memory
    if memory.initial is None:
        return state
    began = beginning(memory)
    spike, alarm = began + EARLY_SPIKE * memory.unit, began + EARLY_ALARM * memory.unit
    return state._replace(loss_spike=spike, loss_alarm=alarm)


def limits(state: DivergenceState, spike_threshold: float) -> DivergenceState:
    """Sets the limits from the blocks of the window, of which there is at least one."""
    memory = state.memory
    losses = [x for block in memory.blocks for x in block.losses]
    norms = [g for block in memory.blocks for g in block.norms]
    unit = memory.unit
    if memory.linear:
        unit = max(10.0 * spread(losses), 1e-3 * max(abs(x) for x in losses), TINY)
        memory = memory._replace(unit=unit)
    if len(losses) <= 10:
        begin, tail = max(losses), 0.0
        norm_begin, norm_tail = max(norms), 0.0
    else:
        begin, tail = upper_tail(losses)
        norm_begin, norm_tail = upper_tail(norms)
    if len(memory.blocks) < ARMED_BLOCKS:
        initial = begin if memory.initial is None else memory.initial
        return state._replace(
            loss_spike=max(losses) + EARLY_SPIKE * unit,
            loss_alarm=max(begin, initial) + max(0.5 * unit, ALARM_TAILS * tail),
            norm_spike=max(norms) + EARLY_NORM,
            memory=memory,
        )
    return state._replace(
        loss_spike=begin + max(SPIKE_FLOOR * unit, spike_threshold * tail),
        loss_alarm=begin + max(ALARM_FLOOR * unit, ALARM_TAILS * tail),
        norm_spike=norm_begin + max(NORM_FLOOR, spike_threshold * norm_tail),
        memory=memory,
    )
