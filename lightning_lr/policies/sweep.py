"""Sweep: which rate to try at the next update, and when it has seen enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

from lightning_lr.policies.suggestion import (
    HUGE,
    NO_LOSS,
    RULES,
    Suggestion,
    level_and_noise,
    suggest,
    unbounded_words,
)
from lightning_lr.saved import fields

BRACKET = "bracket"

RAMP_SHARE = 0.25
"""The coarse ramp takes this share of the updates (15 of 60), and less where the loss blows up before its end."""

LOW_POINTS, LOW_DECADES = 1 / 3, 4 / 9
"""The ramp's first third of points crosses the lower 4/9 of the decades: there is only noise to be measured there."""

TRIALS = 3
"""The updates after the ramp are enough for so many trials of full length. Two long ones can't bracket a minimum; in
four short ones a rate that diverges later still looks best."""

LEAST_TRIAL = 0.6
"""A last trial needs this share of the full length to be worth comparing."""

BELOW_BLOW_UP = 10.0
"""The first trial's rate is the one that blew the ramp up over this: blow-up needs a higher rate in one update than in
fifteen."""

TRIAL_STEP = 3.0
"""The ratio of neighbouring trials' rates."""

MARGIN = 0.3
"""The rate that is best over some fifteen updates is too high for a whole run: this share of it is suggested. A quarter
was better for SGD, a half for AdamW, and 0.3 within 0.003 of the best regret for both together."""

BLOWN, BLOWN_AT_ONCE = 7.0, 25.0
"""So many standard deviations above the level, twice in a row or at once, is a blow-up."""

NOISE_POINTS = 8
"""The level and its noise are those of the ramp's first points."""

SCORED = 6
"""A trial's score is its mean loss over the last so many updates."""

RESTLESS = 1.0
"""What a trial's restlessness adds to its score, in its standard deviations."""

FELL = 2.0
"""A score so many standard errors below the level is a real decrease."""


class Trial(NamedTuple):
    """One rate's turn: some updates from the healthy start.

    Args:
        rate: absolute.
        start: the index of its first update in the sweep.
        mean: its mean loss at the end; None when it blew up.
        score: what it is compared by: the mean and a share of its restlessness; None when it blew up.
    """

    rate: float
    start: int
    mean: float | None = None
    score: float | None = None


class Next(NamedTuple):
    """What to do now.

    Args:
        rate: the rate of the next update, absolute; None when the sweep has ended.
        restore: whether the healthy start must be restored before that update.
        suggestion: at the end, what came out.
    """

    rate: float | None
    restore: bool
    suggestion: Suggestion | None = None


@dataclass(frozen=True)
class SweepState:
    """What the policy remembers: plain numbers.

    Args:
        rates: the rates of all updates so far and of the one that is being made, absolute.
        losses: the losses seen, each before the update with the rate of the same index.
        trials: the trials that are over; none during the ramp.
        trial_start: the index of the present trial's first update; 0 during the ramp.
        trial_length: updates of a full trial; 0 during the ramp.
        blown: updates in a row whose loss was too high.
        bound: the rate that made the ramp blow up; None when none did.
    """

    rates: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    trials: tuple[Trial, ...] = ()
    trial_start: int = 0
    trial_length: int = 0
    blown: int = 0
    bound: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """A dict of numbers and lists, for a checkpoint."""
        saved = {name: getattr(self, name) for name in ("trial_start", "trial_length", "blown", "bound")}
        trials = [list(trial) for trial in self.trials]
        return {"version": 1, "rates": list(self.rates), "losses": list(self.losses), "trials": trials, **saved}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> SweepState:
        """The state that `to_dict` gave.

        Raises:
            SavedStateError: for a version that this release doesn't know.
        """
        own = fields(saved, 1, cls)
        own["trials"] = tuple(Trial(*trial) for trial in own["trials"])
        return cls(**{**own, "rates": tuple(own["rates"]), "losses": tuple(own["losses"])})


@dataclass(frozen=True)
class SweepPolicy:
    """Leads a sweep over rates, one loss at a time, and suggests a rate at its end.

    With a known rule (`steepest`, `valley`, `slide`, `minimum`) the rate rises geometrically from `min_lr` to `max_lr`,
    and the rule reads the curve.

    With `bracket` a coarse ramp of a quarter of the updates finds the rate at which the loss blows up. Then come trials
    of equal length, each at one constant rate and each from the healthy start: at a tenth of that rate, and at thrice
    more or less until the one with the best score has a worse one on either side. A score is the mean loss at the
    trial's end plus one standard deviation of the noise there: a rate that makes the loss restless fails later. A trial
    that blows up ends early, and no rate above it is trusted. A parabola through the three best in log rate gives the
    minimum, and 0.3 of it is suggested: what is best for some fifteen updates is too high for a run. Where no trial
    lowers the loss beyond its noise, the highest rate that did not raise it takes the place of the best.

    Args:
        min_lr: the lowest rate, absolute, > 0.
        max_lr: the highest rate, absolute, > `min_lr`.
        steps: the most updates, >= 20.
        suggest: `bracket` or the name of a known rule.

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
        if not 0.0 < self.min_lr < self.max_lr < math.inf:
            raise ValueError(
                f"min_lr and max_lr must be finite with 0 < min_lr < max_lr, got {self.min_lr!r} and {self.max_lr!r}"
            )
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 20:
            raise ValueError(f"steps must be a whole number >= 20, got {self.steps!r}: fewer updates show nothing")
        if self.suggest != BRACKET and self.suggest not in RULES:
            names = ", ".join(map(repr, (BRACKET, *RULES)))
            raise ValueError(f"suggest must be one of {names}, got {self.suggest!r}")

    def start(self) -> tuple[SweepState, Next]:
        """The state before the first update, and that update's rate."""
        return SweepState(rates=(self.min_lr,)), Next(self.min_lr, False)

    def step(self, state: SweepState, loss: float) -> tuple[SweepState, Next]:
        """Takes the loss that was seen before the update with the last rate was made.

        Args:
            state: what came out of the step before.
            loss: the mean over micro-batches and ranks; one that is not finite counts as a blow-up.

        Returns:
            The new state, and what to do next.
        """
        if not abs(loss) < HUGE:
            loss = math.inf
        state = replace(state, losses=(*state.losses, loss))
        if len(state.losses) == 1 and not math.isfinite(loss):
            return state, Next(None, True, Suggestion(None, NO_LOSS))
        state, over = self._judge(state, loss)
        if state.trial_length == 0:
            return self._ramp(state, over)
        return self._trial(state, over)

    def reading(self, state: SweepState) -> tuple[float, float]:
        """The level of the loss at the healthy start, and its noise (one standard deviation)."""
        ramp = state.losses[: state.trials[0].start if state.trials else len(state.losses)]
        return level_and_noise([loss for loss in ramp[: self._noise_points] if math.isfinite(loss)])

    # -- the ramp --------------------------------------------------------------------------------------------------

    @property
    def ramp_steps(self) -> int:
        """The updates of the ramp, if nothing blows up."""
        return round(RAMP_SHARE * self.steps) if self.suggest == BRACKET else self.steps

    @property
    def _noise_points(self) -> int:
        return min(NOISE_POINTS, self.ramp_steps // 2 + 1)

    def ramp_rate(self, index: int) -> float:
        """The rate of the ramp's update `index` (from 0), absolute."""
        last = self.ramp_steps - 1
        at = index / last
        if self.suggest == BRACKET:
            low = max(1, round(LOW_POINTS * self.ramp_steps) - 1)
            at = LOW_DECADES * index / low
            if index > low:
                at = LOW_DECADES + (1.0 - LOW_DECADES) * (index - low) / (last - low)
        return self.min_lr * (self.max_lr / self.min_lr) ** at

    def _judge(self, state: SweepState, loss: float) -> tuple[SweepState, bool]:
        """Is this loss, with the one before it, a blow-up?"""
        if not math.isfinite(loss):
            return replace(state, blown=state.blown + 1), True
        begin = state.trial_start
        if len(state.losses) - 1 == begin or (state.trial_length == 0 and len(state.losses) < 4):
            return state, False
        # a loss is judged by those that came before it
        level, noise = self.reading(replace(state, losses=state.losses[:-1]))
        high = level + BLOWN * noise
        if state.trial_length == 0:
            # a dead network can sit below the level it started from: a ramp that lost half of its gain has turned
            low = min(state.losses)
            high = min(high, max(low + (FELL + BLOWN) * noise, 0.5 * (level + low) + FELL * noise))
        blown = state.blown + 1 if loss > high else 0
        at_once = BLOWN_AT_ONCE if state.trial_length or len(state.losses) > self._noise_points else 4 * BLOWN_AT_ONCE
        return replace(state, blown=blown), blown >= 2 or loss > level + at_once * noise

    def _ramp(self, state: SweepState, over: bool) -> tuple[SweepState, Next]:
        count = len(state.losses)
        if over and state.bound is None:
            # the loss shows what the update before did, and of two high ones the first was the turn
            state = replace(state, bound=state.rates[max(0, count - 1 - state.blown)])
        if count < self.ramp_steps and not over:
            rate = self.ramp_rate(count)
            return replace(state, rates=(*state.rates, rate)), Next(rate, False)
        if self.suggest != BRACKET:
            return state, Next(None, True, suggest(self.suggest, state.rates, state.losses))
        length = math.ceil((self.steps - count) / TRIALS)
        first = (self.max_lr if state.bound is None else state.bound) / BELOW_BLOW_UP
        return self._begin(replace(state, trial_length=length), max(first, self.min_lr))

    # -- the trials ------------------------------------------------------------------------------------------------

    def _begin(self, state: SweepState, rate: float) -> tuple[SweepState, Next]:
        state = replace(state, rates=(*state.rates, rate), trial_start=len(state.losses), blown=0)
        return state, Next(rate, True)

    def _trial(self, state: SweepState, over: bool) -> tuple[SweepState, Next]:
        losses, rate = state.losses[state.trial_start :], state.rates[-1]
        if not over and len(losses) < state.trial_length and len(state.losses) < self.steps:
            return replace(state, rates=(*state.rates, rate)), Next(rate, False)
        tail = losses[-SCORED:]
        trial = Trial(rate, state.trial_start)
        if not over:
            mean = math.fsum(tail) / len(tail)
            trial = trial._replace(mean=mean, score=mean + RESTLESS * _restlessness(tail))
        state = replace(state, trials=(*state.trials, trial))
        left = self.steps - len(state.losses)
        following = self._following(state)
        if following is None or left < LEAST_TRIAL * state.trial_length:
            return state, Next(None, True, self._suggestion(state))
        return self._begin(state, following)

    def _best(self, state: SweepState) -> tuple[Trial | None, bool]:
        """The best trial so far, and whether it truly lowered the loss."""
        # above a rate that blew up nothing is to be trusted: a model may sit still there because it is dead
        ceiling = min((trial.rate for trial in state.trials if trial.score is None), default=math.inf)
        stable = [trial for trial in state.trials if trial.rate < ceiling]
        if not stable:
            return None, False
        level, noise = self.reading(state)
        fell = [trial for trial in stable if _height(trial, level, noise) < -FELL]
        if not fell:
            calm = [trial for trial in stable if _height(trial, level, noise) < FELL]
            return (max(calm, key=lambda trial: trial.rate) if calm else min(stable, key=_score)), False
        return min(fell, key=_score), True

    def _following(self, state: SweepState) -> float | None:
        best, fell = self._best(state)
        rates = [trial.rate for trial in state.trials]
        lower = min(rates) / TRIAL_STEP
        if best is None:
            return lower if lower >= self.min_lr else None
        down = lower if best.rate == min(rates) and lower >= self.min_lr else None
        up = best.rate * TRIAL_STEP
        if best.rate != max(rates) or up > self.max_lr:
            return down
        # where even the ramp got lower, or nothing bounds the rate from above, a higher rate is worth more than a lower
        low = min(state.losses[: state.trials[0].start])
        slow = fell and (state.bound is None or (best.mean is not None and best.mean > low))
        return up if down is None or slow else down

    def _suggestion(self, state: SweepState) -> Suggestion:
        best, fell = self._best(state)
        if best is None:
            lowest = min(trial.rate for trial in state.trials)
            return Suggestion(None, f"the loss blew up even at {lowest:.3g}, the lowest rate tried: lower max_lr")
        ordered = sorted(state.trials)
        place = ordered.index(best)
        bounded = state.bound is not None or any(trial.score is None for trial in ordered)
        if not fell and not bounded:
            return Suggestion(None, unbounded_words(self.max_lr))
        middle = math.log(best.rate)
        if fell and 0 < place < len(ordered) - 1:
            left, right = ordered[place - 1].score, ordered[place + 1].score
            if left is not None and right is not None:
                middle += _vertex(left, _score(best), right) * math.log(TRIAL_STEP)
        rate = MARGIN * math.exp(middle)
        tried = ", ".join(f"{t.rate:.2g}: {'blew up' if t.mean is None else format(t.mean, '.4g')}" for t in ordered)
        how = "lowest loss" if fell else "highest stable rate, no trial lowered the loss yet"
        if fell and not bounded and best.rate * TRIAL_STEP > self.max_lr:
            how += ", still falling there: a higher max_lr may find more"
        return Suggestion(rate, f"{MARGIN:g} of {rate / MARGIN:.3g} ({how}; {tried})")


def _restlessness(losses: Sequence[float]) -> float:
    """The standard deviation that neighbouring losses speak for: of the noise alone, whatever the trend."""
    steps = [(b - a) ** 2 for a, b in pairwise(losses)]
    return math.sqrt(0.5 * math.fsum(steps) / len(steps)) if steps else 0.0


def _height(trial: Trial, level: float, noise: float) -> float:
    """A trial's mean above the level, in standard errors by the start's noise or its own, whichever is more."""
    if trial.mean is None or trial.score is None:
        return math.inf
    own = (trial.score - trial.mean) / RESTLESS
    return (trial.mean - level) * math.sqrt(SCORED) / max(noise, own)


def _score(trial: Trial) -> float:
    return math.inf if trial.score is None else trial.score


def _vertex(left: float, middle: float, right: float) -> float:
    """Where the parabola through three equally spaced points is lowest, in spacings from the middle, at most half."""
    bend = left - 2.0 * middle + right
    return 0.0 if bend <= 0.0 else max(-0.5, min(0.5, 0.5 * (left - right) / bend))
