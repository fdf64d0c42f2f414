"""The policy of a sweep: which rate to try at the next update, on which batch, and when it has seen enough."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Real

from lightning_lr.arguments import whole_number
from lightning_lr.policies.curve_rules import RULES, suggest
from lightning_lr.policies.horizon import Horizon
from lightning_lr.policies.ramp import BLOWN, BLOWN_AT_ONCE, Ramp
from lightning_lr.policies.second_opinion import second_opinion
from lightning_lr.policies.suggestion import NO_LOSS, Suggestion
from lightning_lr.policies.sweep_state import NextUpdate, SweepState
from lightning_lr.policies.tried_rates import STEP, TriedRate, TriedRates
from lightning_lr.statistics.level import HUGE, level_and_noise

BRACKET = "bracket"

LEAST_STEPS = 20
"""A sweep of fewer updates than this shows nothing."""

PROBES = 8
"""A trial is scored by its losses on this many batches, the same for all trials. With four of 60 updates, the picks of
three seeds lay twice as far apart; with twelve, too few updates are left for training."""

LOOK, RAMP = 2 / 15, 1 / 5
"""The share of the updates for the look at the start's weights, and the share for the ramp: 8 and 12 of 60."""

MOST_RAMP = 16
"""The most updates of a ramp: a longer one finds nothing more."""

TRIALS = 3
"""The updates after the ramp are enough for this many trials."""

SHORT = 14
"""The most updates of a trial in the first, coarse search. Picks from this many updates and from forty were equally
good on the tuning half, so more rates are worth more than longer trials."""

LONGER = 2.0
"""There is a second, longer search if its trials can be this many times as long as those of the coarse one."""

LEAST_TRIAL = 0.6
"""A last trial needs this share of the full length to be worth comparing."""

SECOND = 11
"""The most updates of a trial of a second opinion."""

SECOND_STEPS = PROBES + 3 * SECOND
"""The most updates of a second opinion."""

BELOW_BLOW_UP = 10.0
"""The first trial's rate is the one at which the ramp blew up, divided by this: a single update needs a higher rate to
blow up than fifteen updates do."""

LOST = 100.0
"""A trial has blown up when its loss is this many standard deviations above the start's level."""


def on_grid(rate: float) -> float:
    """The nearest power of `STEP`, so that sweeps whose ramps end at different rates try the same ones.

    Example:
        >>> [round(on_grid(rate), 3) for rate in (0.03, 0.1, 0.2)]
        [0.037, 0.111, 0.333]
    """
    return STEP ** round(math.log(rate) / math.log(STEP))


@dataclass(frozen=True)
class SweepPolicy:
    """Leads a sweep over learning rates, one loss at a time, and suggests a rate at its end.

    With a known rule (`steepest`, `valley`, `slide`, `minimum`) the rate rises geometrically from `min_lr` to `max_lr`,
    and the rule reads a rate off the curve.

    With `bracket` all rates are compared on the same batches:

    1. *Look*: the losses of the start's weights on the probe batches.
    2. *Ramp*: a coarse ramp finds the rate at which the loss blows up.
    3. *Trials*, each at one constant rate and each from the start. All train on the same batches, and each ends on the
       probe batches, where the mean difference from the losses of the start, or of another trial, has a standard error.
       Rates go by factors of three, beginning at a tenth of the one that blew up, until the best rate has a worse one
       above it and a clearly worse one below it. Nothing above a rate that blew up is trusted. If there are enough
       updates, the best rates are tried again in longer trials.

    Of rates that can't be told apart the lowest is taken. What is suggested is a share of the best rate: the longer the
    run, the smaller the share, because the rate that is best over a few updates is too high for many.

    A suggestion is sure if the best trial lowered the loss by three standard errors, and the rates that can't be told
    from it span no more than a factor of five.

    With `around` in `start` the sweep is a second opinion on a rate, and smaller.

    Args:
        min_lr: the lowest rate, absolute, > 0.
        max_lr: the highest rate, absolute, > `min_lr`.
        steps: the most updates of a sweep, >= 20.
        suggest: `bracket`, or the name of a known rule.

    Raises:
        ValueError: for a value outside its bounds.

    Example:
        >>> policy = SweepPolicy()
        >>> state, now = policy.start()
        >>> weight = 1.0
        >>> while now.rate is not None:
        ...     weight = 1.0 if now.restore else weight
        ...     loss, weight = weight**2, weight - now.rate * 10.0 * weight
        ...     state, now = policy.step(state, loss)
        >>> 0.01 < now.suggestion.rate < 0.2
        True
    """

    min_lr: float = 1e-8
    max_lr: float = 10.0
    steps: int = 60
    suggest: str = BRACKET

    def __post_init__(self) -> None:
        low, high = self.min_lr, self.max_lr
        numbers = all(isinstance(rate, Real) and not isinstance(rate, bool) for rate in (low, high))
        if not numbers or not 0.0 < low < high < math.inf:
            raise ValueError(f"min_lr and max_lr must be finite with 0 < min_lr < max_lr, got {low!r} and {high!r}")
        for name, rate in {"min_lr": low, "max_lr": high}.items():
            object.__setattr__(self, name, float(rate))
        object.__setattr__(self, "steps", whole_number("steps", self.steps, LEAST_STEPS, "fewer updates show nothing"))
        rules = (BRACKET, *RULES)
        if self.suggest not in rules:
            raise ValueError(f"suggest must be one of {', '.join(map(repr, rules))}, got {self.suggest!r}")

    def start(
        self, *, around: float | None = None, paired: bool = True, horizon: Horizon | None = None
    ) -> tuple[SweepState, NextUpdate]:
        """The state before the first update, and what this update is.

        Args:
            around: the present rate, absolute, for a second opinion on it; None: a sweep over all rates.
            paired: whether a batch can be used again by its number.
            horizon: how long the rate must be good for.

        Returns:
            The state, and what to do first.
        """
        if self.suggest != BRACKET:
            return SweepState(rates=(self.min_lr,), paired=False), NextUpdate(self.min_lr, True)
        state = SweepState(rates=(0.0,), around=around, paired=paired, horizon=horizon or Horizon())
        return state, NextUpdate(0.0, True, 0)

    def step(self, state: SweepState, loss: float) -> tuple[SweepState, NextUpdate]:
        """Takes the loss that was seen before the update at the last rate.

        Args:
            state: the state that the step before returned.
            loss: the mean over micro-batches and ranks; a loss that is not finite counts as a blow-up.

        Returns:
            The new state, and what to do next.
        """
        if not abs(loss) < HUGE:
            loss = math.inf
        state = replace(state, losses=(*state.losses, loss))
        looking = state.ramp_start == 0 and self.suggest == BRACKET
        if not math.isfinite(loss) and (len(state.losses) == 1 or looking):
            return state, NextUpdate(None, True, suggestion=Suggestion(None, NO_LOSS))
        if self.suggest != BRACKET:
            return self._plain_ramp(state)
        if looking:
            return self._look(state)
        return self._ramp(state) if state.trial_length == 0 else self._trial(state)

    def unpaired(self, state: SweepState) -> SweepState:
        """The state from which on no batch can be used again: losses are compared as those of different batches."""
        return replace(state, paired=False)

    # -- the start -------------------------------------------------------------------------------------------------

    @property
    def probes(self) -> int:
        """The number of batches on which a trial is scored."""
        return max(3, min(PROBES, round(LOOK * self.steps)))

    def _look(self, state: SweepState) -> tuple[SweepState, NextUpdate]:
        count = len(state.losses)
        if count < self.probes:
            # some optimizers change weights even at rate 0
            return replace(state, rates=(*state.rates, 0.0)), NextUpdate(0.0, True, count)
        state = replace(state, ramp_start=count)
        if state.around is not None:
            length = min(SECOND, (self.steps - count) // 2)
            return self._begin(replace(state, trial_length=length), state.around)
        rate = self.ramp_rate(0)
        return replace(state, rates=(*state.rates, rate)), NextUpdate(rate, True, 0)

    # -- the ramp --------------------------------------------------------------------------------------------------

    @property
    def ramp_steps(self) -> int:
        """The updates of the ramp, if nothing blows up."""
        return min(MOST_RAMP, round(RAMP * self.steps)) if self.suggest == BRACKET else self.steps

    def ramp_rate(self, index: int) -> float:
        """The rate of the ramp's update `index` (from 0), absolute."""
        return self._rising.rate(index)

    @property
    def _rising(self) -> Ramp:
        return Ramp(self.min_lr, self.max_lr, self.ramp_steps, self.suggest == BRACKET)

    def _ramp(self, state: SweepState) -> tuple[SweepState, NextUpdate]:
        made = len(state.losses) - state.ramp_start
        level, noise = level_and_noise(self._base(state))
        risen = self._risen(state, made - 1, level)
        blown = state.blown + 1 if risen > BLOWN * noise else 0
        state = replace(state, blown=blown)
        changes = [self._risen(state, index, level) for index in range(made)]
        turned = self._rising.turned(changes, noise)
        if made > 1 and (blown >= 2 or turned or risen > BLOWN_AT_ONCE * noise):
            # the loss shows what the update before did, and of two high losses the first was the turn; if a ramp
            # only lost its gain, it is the present rate (the one before gave a regret of 0.098, not 0.068, under SGD)
            turn = state.rates[max(state.ramp_start, len(state.losses) - 1 - blown)]
            state = replace(state, bound=turn)
        elif made < self.ramp_steps:
            rate = self.ramp_rate(made)
            return replace(state, rates=(*state.rates, rate)), NextUpdate(rate, False, made % self.probes)
        length = min(SHORT, max(self.probes + 1, (self.steps - len(state.losses)) // TRIALS))
        first = (self.max_lr if state.bound is None else state.bound) / BELOW_BLOW_UP
        return self._begin(replace(state, trial_length=length), max(on_grid(first), self.min_lr))

    def _risen(self, state: SweepState, index: int, level: float) -> float:
        """How far the ramp's loss at an update is above the start's, on the same batch if batches are paired."""
        start = self._base(state)[index % self.probes] if state.paired else level
        return state.losses[state.ramp_start + index] - start

    def _plain_ramp(self, state: SweepState) -> tuple[SweepState, NextUpdate]:
        count = len(state.losses)
        if count < self.steps and self._rising.calm(state.losses):
            rate = self.ramp_rate(count)
            return replace(state, rates=(*state.rates, rate)), NextUpdate(rate, False)
        return state, NextUpdate(None, True, suggestion=suggest(self.suggest, state.rates[:count], state.losses))

    # -- the trials ------------------------------------------------------------------------------------------------

    def _base(self, state: SweepState) -> tuple[float, ...]:
        return state.losses[: self.probes]

    def _begin(self, state: SweepState, rate: float) -> tuple[SweepState, NextUpdate]:
        state = replace(state, rates=(*state.rates, rate), trial_start=len(state.losses), blown=0)
        return state, NextUpdate(rate, True, self._batch(state, 0))

    def _batch(self, state: SweepState, index: int) -> int:
        """The batch of the present trial's update `index`: at its end those of the look, before them others."""
        trained = state.trial_length - self.probes
        return self.probes + index if index < trained else index - trained

    def _trial(self, state: SweepState) -> tuple[SweepState, NextUpdate]:
        losses, rate = state.losses[state.trial_start :], state.rates[-1]
        level, noise = level_and_noise(self._base(state))
        lost = losses[-1] > level + LOST * noise
        if not lost and len(losses) < state.trial_length:
            state = replace(state, rates=(*state.rates, rate))
            return state, NextUpdate(rate, False, self._batch(state, len(losses)))
        scored = None if lost else losses[-self.probes :]
        trial = TriedRate(rate, state.trial_start, state.trial_length, scored)
        state = replace(state, trials=(*state.trials, trial))
        trials = TriedRates(self._base(state), state.trials, state.paired)
        if state.around is not None:
            return self._second(state, trials)
        return self._search(state, trials)

    def _second(self, state: SweepState, trials: TriedRates) -> tuple[SweepState, NextUpdate]:
        following, said = second_opinion(trials, low=self.min_lr, high=self.max_lr)
        if following is not None and self.steps - len(state.losses) >= state.trial_length:
            return self._begin(state, following)
        return state, NextUpdate(None, True, suggestion=said)

    def _search(self, state: SweepState, trials: TriedRates) -> tuple[SweepState, NextUpdate]:
        left = self.steps - len(state.losses)
        ceiling = self.max_lr if state.bound is None else min(self.max_lr, state.bound)
        following = trials.next_rate(self.min_lr, ceiling, bounded=state.bound is not None)
        long = int(left // TRIALS)
        if state.trial_length <= SHORT and long >= LONGER * state.trial_length:
            best = trials.best
            enough = following is None or long < (LONGER + 0.5) * state.trial_length
            if best is not None and enough:
                return self._begin(replace(state, trial_length=long), best.rate)
        if following is None or left < state.trial_length:
            bounded = state.bound is not None or any(trial.losses is None for trial in state.trials)
            said = trials.suggestion(state.horizon, self.min_lr, self.max_lr, bounded=bounded)
            return state, NextUpdate(None, True, suggestion=said)
        return self._begin(state, following)
