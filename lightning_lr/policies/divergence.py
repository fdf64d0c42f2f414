"""Divergence: is this update healthy, a bad batch, or part of a run that is coming apart?"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_lr.policies.divergence_evidence import (
    CLIMBS,
    FOREIGN,
    foreign,
    hot,
    in_order,
    known,
    new_territory,
    overwriting,
    rising,
    strange,
    strange_blocks,
    sudden,
    trusted,
)
from lightning_lr.policies.divergence_limits import (
    ALARM_FLOOR,
    EARLY_SPIKE,
    REVIEW,
    TINY,
    ZERO,
    beginning,
    early,
    in_loss_unit,
    limits,
    restarted,
    transform,
    unlimited,
)
from lightning_lr.policies.divergence_state import Block, DivergenceState, Kind, Memory, Signals, Verdict
from lightning_lr.statistics.window import centre, spread

NONFINITE_LIMIT = 3
"""So many updates in a row that are not finite are no accident: the weights themselves are suspected."""

DATA_LIMIT = 50
"""So many in a row at weights that are known to be healthy: the data or the model is broken, and no rate mends it."""

SPIKE_LIMIT = 3
"""So many spikes in a row are a sustained rise."""

SKIP_LIMIT = 12
"""So many spikes in a row, at weights that have not moved: the data has changed for good. Above the ten bad batches in
a row that the development runs were given."""

HIGH_LIMIT, EARLY_HIGH_LIMIT = 5, 2
"""Losses in a row above the alarm limit that make an alarm, and how many do before the first review."""

HOT_BACKOFFS = 3
"""Backoffs at once when a start was too hot: the tuned rate lies about a decade below the first one that overwrites
the weights (Godbole et al., "Deep Learning Tuning Playbook": a tenth of the rate at which training becomes
unstable)."""

JUMP = 0.1
"""No change by the square root of its age below this is a jump, however still the weights were before."""

STEEP = 3.0
"""In territory this new a smaller climb is enough (`LOST_STEEP`)."""

LOST_HALF, LOST_STEEP, LOST_ALL = 0.5, 0.25, 0.85
"""Shares of what a run has gained (in logarithms of loss) since its beginning that a climb must have cost."""

LEVEL_NOISE = 6.0
"""No climb below this many standard errors of a level counts."""

CALM_SHARE, CALM_NOISE = 0.15, 3.0
"""A level within this share of the gain, or so many standard errors, of the best proves the updates before it
healthy."""

PROVEN_BLOCKS = 3
"""Reviews after which a calm run proves the weights of the first one healthy."""

GENTLE = 0.012
"""After a start too hot the rate grows back only while a change by the square root of its age is no more than this:
development runs at their tuned rate had 0.009 to 0.02 once settled. The update-to-weight ratio of 1e-3 to 1e-2 that
Karpathy's CS231n notes advise is the same heuristic."""

MOST_BACKOFFS = 3
LASTING = 64
"""Healthy updates after a rewind that make its progress lasting."""

AGAIN, UNDER = 0.6, 0.95
"""A failure above this share of the ceiling is one at the same height; the first one sets the ceiling just under
itself."""


@dataclass(frozen=True)
class DivergencePolicy:
    """Judges each update before it is applied, from numbers alone; see `Verdict` for what follows.

    - *Not finite*: skipped; several in a row are a rewind, unless the weights were measured and found in order.
    - *Spike*: skipped. What counts is the run's own upper tail over the last `window` accepted updates, continued as a
      power law; a rejected value never enters it. Spikes in a row: a rewind if the weights or the rate are strange,
      else bad data.
    - *Slow divergence*: at three reviews in a row the loss has lost half of what it had gained (a quarter, at a rate
      far above a healthy one): a rewind. A rise that came at once, with weights and rate in order, is the data's: a
      new level.
    - *Dead run*: weights move far from where they started, and the loss has clearly learned nothing meanwhile and is
      not falling: a rewind to the start.

    After a rewind the *effective rate* is capped, at the last healthy one if a raised rate failed, else by `backoff`
    (once, twice, three times on repetition). The cap grows back after calm reviews to just under the rate that failed;
    each further failure at that height lowers this ceiling for good. A rate that the scheduler takes down on its own
    is left
    alone: it is the rate that failed, not the factor.

    Args:
        spike_threshold: how many mean excesses of the tail a spike lies beyond its beginning, >= 3. With 14 and a tail
            of 13 values one in 100,000 healthy updates is expected there: 0.1 (1 + 14 / 13)^-13.
        window: accepted updates that are remembered, a multiple of 8, >= 32.
        backoff: the ratio of the rate after a failure to the rate before, in (0, 1).
        max_rewinds: rewinds without lasting progress before it gives up, >= 1.
        regrow: calm updates in which the cap doubles, >= 8.
        loss_falls: whether the loss of a healthy run falls. Where several losses are set against each other (a GAN) it
            need not: neither a climb nor a lack of gain is then held against the rate.

    Raises:
        ValueError: for a value outside its bounds.

    Source: the tail: see `upper_tail`. Ceiling: Jacobson, "Congestion avoidance and control" (1988). The rest: each
        constant's docstring, in this file and in `divergence_limits`.

    Example:
        >>> policy = DivergencePolicy()
        >>> state, kinds = policy.start(), []
        >>> for loss in [2.3, 2.2, float("nan"), 2.1, 1e9, 2.0]:
        ...     state, verdict = policy.step(state, Signals(loss, grad_norm=1.0))
        ...     kinds.append(verdict.kind)
        >>> kinds
        ['accept', 'accept', 'skip', 'accept', 'skip', 'accept']
    """

    spike_threshold: float = 14.0
    window: int = 128
    backoff: float = 0.5
    max_rewinds: int = 12
    regrow: int = 200
    loss_falls: bool = True

    def __post_init__(self) -> None:
        if not 3.0 <= self.spike_threshold < math.inf:
            raise ValueError(
                f"spike_threshold must be finite and >= 3, got {self.spike_threshold!r}: less skips healthy updates"
            )
        for name, value, least in (
            ("window", self.window, 32),
            ("max_rewinds", self.max_rewinds, 1),
            ("regrow", self.regrow, REVIEW),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")
        if self.window % REVIEW:
            raise ValueError(
                f"window must be a multiple of {REVIEW}, got {self.window}: try {self.window // 8 * 8 + 8}"
            )
        if not 0.0 < self.backoff < 1.0:
            raise ValueError(f"backoff must be in (0, 1), got {self.backoff!r}: 0.5 halves the rate after a failure")

    def start(self, planned_rate: float = 0.0) -> DivergenceState:
        """The state before the first update.

        Args:
            planned_rate: the highest rate that the user's schedule plans, in the unit of `Signals.rate`: a warm-up that
                rises to it enters no new territory. 0.0 where nothing is known.
        """
        return DivergenceState(memory=Memory(top_rate=planned_rate))

    def step(self, state: DivergenceState, signals: Signals) -> tuple[DivergenceState, Verdict]:
        """Judges one update.

        Args:
            state: what came out of the step before.
            signals: what is known about the update.

        Returns:
            The new state, and what to do.
        """
        loss, norm = signals.loss, signals.grad_norm
        if not (signals.finite and math.isfinite(loss) and math.isfinite(norm)):
            return self._nonfinite(state, signals)
        memory = state.memory
        if memory.zero <= TINY and loss != 0.0:
            # losses of exactly zero say nothing of the unit: the first other one does
            zero = max(ZERO * abs(loss), 2 * TINY)
            memory = memory._replace(zero=zero, blocks=(), initial=None, first=None, best=None, climbs=0)
            state = unlimited(state, memory)
        elif memory.zero == 0.0:
            memory = memory._replace(zero=TINY)
            state = state._replace(memory=memory)
        if loss < 0.0 and not memory.linear:
            # the unit of all that is remembered of the losses changes: learn it anew
            memory = memory._replace(blocks=(), linear=True, initial=None, best=None, climbs=0)
            state = unlimited(state, memory)
        x, g = transform(memory, loss), math.log(max(norm, TINY))
        if signals.weight_change is not None and not math.isfinite(signals.weight_change):
            return self._rewind(state, signals, "the weights are not finite")
        if self.loss_falls and signals.drift is not None and hot(state, signals, x):
            cause = "the weights were overwritten faster than anything was learned"
            return self._rewind(state, signals, cause, hot=True)
        if x > state.loss_spike or g > state.norm_spike:
            return self._spike(state, signals, x)
        change = state.change
        if signals.weight_change is not None and signals.weight_age > 0:
            change = max(change, signals.weight_change / math.sqrt(signals.weight_age))
            if memory.pace and change > max(JUMP, FOREIGN * memory.pace) and rising(state, signals):
                return self._rewind(state, signals, "the rate rose and the weights move faster than ever")
        rate = signals.rate if signals.rate < memory.cap else memory.cap
        high = state.high + 1 if x > state.loss_alarm else 0
        before = state.update
        state = DivergenceState(
            before + 1,
            (*state.losses, x),
            (*state.norms, g),
            rate if rate > state.rate else state.rate,
            change,
            state.loss_spike,
            state.loss_alarm,
            state.norm_spike,
            0,
            0,
            high,
            memory,
        )
        if high >= (HIGH_LIMIT if memory.blocks else EARLY_HIGH_LIMIT) and (
            (self.loss_falls and not memory.blocks) or strange(state, signals)
        ):
            return self._rewind(state._replace(update=before), signals, "the loss rose and stayed up")
        if not memory.blocks:
            state = early(state)
        if len(state.losses) >= REVIEW:
            state, cause = self._review(state, signals)
            if cause:
                return self._rewind(state._replace(update=before), signals, cause)
        return _answer(state, signals, "accept", measure=high >= 2 or rising(state, signals))

    def rewound(self, state: DivergenceState, label: int) -> DivergenceState:
        """The state after somebody else gave back the snapshot with this label: what came after it is forgotten."""
        blocks = tuple(block for block in state.memory.blocks if block.update <= label)
        level = centre([x for block in blocks[-PROVEN_BLOCKS:] for x in block.losses]) if blocks else None
        memory = state.memory._replace(
            blocks=blocks, best=level, proven=min(state.memory.proven, label), anchor=label, since_rewind=0, climbs=0
        )
        state = DivergenceState(update=state.update, memory=memory)
        return limits(state, self.spike_threshold) if blocks else restarted(state)

    def _nonfinite(self, state: DivergenceState, signals: Signals) -> tuple[DivergenceState, Verdict]:
        count = state.nonfinite + 1
        if not trusted(state, signals) and foreign(state, signals) and known(state, signals):
            return self._rewind(state, signals, "an update was not finite, and the weights have moved too far")
        if count >= NONFINITE_LIMIT and not trusted(state, signals) and not in_order(state, signals):
            return self._rewind(state, signals, f"{count} updates in a row were not finite")
        state = state._replace(update=state.update + 1, nonfinite=count)
        if count > DATA_LIMIT:
            cause = f"{count} updates in a row were not finite at healthy weights: the data or the model is at fault"
            return _answer(state, signals, "give_up", cause)
        return _answer(state, signals, "skip", "the loss or a gradient is not finite", measure=True)

    def _spike(self, state: DivergenceState, signals: Signals, x: float) -> tuple[DivergenceState, Verdict]:
        count = state.spikes + 1
        high_loss = x > state.loss_spike
        cause = "the loss is a spike" if high_loss else "the gradient is a spike"
        threshold = (
            in_loss_unit(state.memory, state.loss_spike) if high_loss else math.exp(min(state.norm_spike, 700.0))
        )
        if not trusted(state, signals):
            if foreign(state, signals) and (count >= 2 or known(state, signals)):
                return self._rewind(state, signals, f"{cause}, and the weights have moved too far", threshold)
            if count >= SPIKE_LIMIT and not in_order(state, signals):
                return self._rewind(state, signals, f"{cause}, {count} in a row", threshold)
        memory = state.memory
        believable = x <= beginning(memory) + EARLY_SPIKE * memory.unit
        if count > SKIP_LIMIT and believable:
            return self.step(_new_level(state, x), signals)
        state = state._replace(update=state.update + 1, spikes=count, nonfinite=0)
        if count > DATA_LIMIT:
            cause = f"{cause}, {count} in a row, far above where the run began: the data or the model is at fault"
            return _answer(state, signals, "give_up", cause, threshold=threshold)
        return _answer(state, signals, "skip", cause, measure=True, threshold=threshold)

    def _review(self, state: DivergenceState, signals: Signals) -> tuple[DivergenceState, str]:
        """Closes a block; returns the cause for a rewind, or an empty one."""
        memory = state.memory
        block = Block(state.update, state.losses, state.norms, state.rate, state.change)
        blocks = (*memory.blocks, block)[-(self.window // REVIEW) :]
        level = centre([x for b in blocks[-3:] for x in b.losses])
        deviations = [x - middle for b in blocks for middle in (centre(b.losses),) for x in b.losses]
        noise = spread(deviations) * 1.25 / math.sqrt(3 * REVIEW)
        # a level of fewer losses is low by chance: no climb is measured from it
        lower = memory.best is None or level < memory.best or len(blocks) <= PROVEN_BLOCKS
        best = level if lower or memory.best is None else memory.best
        memory = memory._replace(
            blocks=blocks,
            since_rewind=memory.since_rewind + len(state.losses),
            best=best,
            best_rate=state.rate if lower else memory.best_rate,
        )
        climb, gain = level - best, max((memory.initial or 0.0) - best, 0.0) if memory.initial is not None else 0.0
        share = LOST_STEEP if new_territory(memory, block.rate, STEEP) else LOST_HALF
        far = climb > max(share * gain, LEVEL_NOISE * noise, ALARM_FLOOR * memory.unit)
        memory = memory._replace(climbs=memory.climbs + 1 if far else 0)
        state = state._replace(losses=(), norms=(), rate=0.0, change=0.0, memory=memory)
        if far and memory.rewinds and memory.since_rewind <= REVIEW:
            # as high at weights that are healthy: it was the data, and the rate gets its due again
            memory = memory._replace(cap=memory.cap_before, rewinds=memory.rewinds - 1)
            return _new_level(state._replace(memory=memory), level), ""
        if self.loss_falls and memory.climbs >= CLIMBS:
            strange = strange_blocks(memory)
            if memory.pace and not strange and sudden(memory, climb):
                return _new_level(state, level), ""
            if strange or climb > LOST_ALL * gain:
                return state, "the loss climbed away from its best"
        if (not self.loss_falls or climb <= max(CALM_SHARE * gain, CALM_NOISE * noise)) and state.high == 0:
            memory = self._calm(memory)
        return limits(state._replace(memory=memory), self.spike_threshold), ""

    def _calm(self, memory: Memory) -> Memory:
        """What a review that finds nothing changes: healthy updates are proven, and the cap grows."""
        blocks, cap, rewinds = memory.blocks, memory.cap, memory.rewinds
        if cap < memory.ceiling and max(b.change for b in blocks[-PROVEN_BLOCKS:]) <= memory.gate:
            cap = min(cap * 2.0 ** (REVIEW / self.regrow), memory.ceiling)
        if memory.since_rewind >= LASTING:
            rewinds = 0
        memory = memory._replace(cap=cap, rewinds=rewinds)
        if len(blocks) < PROVEN_BLOCKS:
            return memory
        healthy = blocks[-PROVEN_BLOCKS]
        return memory._replace(
            proven=max(memory.proven, healthy.update),
            pace=max(memory.pace, healthy.change),
            top_rate=max(memory.top_rate, healthy.rate),
        )

    def _rewind(
        self, state: DivergenceState, signals: Signals, cause: str, threshold: float | None = None, *, hot: bool = False
    ) -> tuple[DivergenceState, Verdict]:
        memory = state.memory
        proven = memory.anchor if hot else memory.proven
        blocks = tuple(block for block in memory.blocks if block.update <= proven)
        failed = max([min(signals.rate, memory.cap), state.rate, *(b.rate for b in memory.blocks if b.update > proven)])
        rewinds = memory.rewinds + 1
        healthy_rate = memory.best_rate if blocks else 0.0
        gate = math.inf
        if hot or (not blocks and overwriting(signals)):
            cap, gate = failed * self.backoff**HOT_BACKOFFS, GENTLE
        elif healthy_rate and new_territory(memory, failed):
            cap = healthy_rate * self.backoff ** min(rewinds - 1, MOST_BACKOFFS)
            gate = max(GENTLE, centre([block.change for block in blocks]))
        else:
            cap = failed * self.backoff ** min(rewinds, MOST_BACKOFFS)
        lasting = hot or not healthy_rate or failed >= AGAIN * memory.ceiling
        ceiling = max(cap, min(memory.ceiling, failed * (self.backoff if lasting else UNDER)))
        memory = memory._replace(
            blocks=blocks,
            # the weights that come back are those of the proven level, not of a better one that came after it
            best=centre([x for block in blocks[-PROVEN_BLOCKS:] for x in block.losses]) if blocks else None,
            best_rate=min(memory.best_rate, blocks[-1].rate) if blocks else memory.best_rate,
            climbs=0,
            proven=proven,
            anchor=proven,
            cap=cap,
            cap_before=memory.cap,
            ceiling=ceiling,
            gate=gate,
            failed_rate=min(memory.failed_rate, failed),
            rewinds=rewinds,
            all_rewinds=memory.all_rewinds + 1,
            since_rewind=0,
        )
        state = DivergenceState(update=state.update + 1, memory=memory)
        state = limits(state, self.spike_threshold) if blocks else restarted(state)
        kind: Kind = "rewind" if rewinds <= self.max_rewinds else "give_up"
        return _answer(state, signals, kind, cause, threshold=threshold)


def _answer(
    state: DivergenceState,
    signals: Signals,
    kind: Kind,
    cause: str = "",
    *,
    measure: bool = False,
    threshold: float | None = None,
) -> tuple[DivergenceState, Verdict]:
    memory = state.memory
    factor = 1.0 if memory.cap >= signals.rate else memory.cap / signals.rate
    return state, Verdict(kind, factor, memory.proven, cause, measure, threshold)


def _new_level(state: DivergenceState, level: float) -> DivergenceState:
    """The data has changed for good: what was known of the losses is forgotten."""
    memory = state.memory
    initial = level if memory.initial is None else max(memory.initial, level)
    return unlimited(state, memory._replace(blocks=(), best=None, initial=initial, climbs=0))
