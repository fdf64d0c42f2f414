"""Rates that were each tried from the same weights, and what they say about the rate of a run."""

from __future__ import annotations

import math
from typing import NamedTuple

from lightning_lr.policies.horizon import STRONG, SURE, Horizon, weakness
from lightning_lr.policies.suggestion import Suggestion, unbounded_words
from lightning_lr.statistics.comparison import ROUNDING, Difference, compare

STEP = 3.0
"""The ratio of neighbouring trials' rates."""

APART = 2.0
"""Two rates are told apart by a difference of this many standard errors."""

WIDE = 5.0
"""If the rates that can't be told from the best span more than this ratio, the suggestion is unsure."""

UNTRIED = 0.5
"""If the best rate is the lowest one tried, and right below a far worse one, it is lowered by this share of a step."""


class TriedRate(NamedTuple):
    """A trial: some updates from the start's weights, at one rate.

    Args:
        rate: absolute.
        start: the index of its first update in the sweep.
        length: the updates that were planned for it.
        losses: those at its end, on the probe batches, each seen before the update on its batch; None if it blew up.
    """

    rate: float
    start: int
    length: int
    losses: tuple[float, ...] | None = None

    @property
    def mean(self) -> float:
        """Its mean loss on the probe batches; infinite if it blew up."""
        return math.inf if self.losses is None else math.fsum(self.losses) / len(self.losses)


class TriedRates(NamedTuple):
    """The trials of one sweep, and the losses of the weights that all of them started from.

    Args:
        base: the losses of the start's weights on the probe batches.
        done: the trials that are over.
        paired: whether the n-th loss is of the same batch in all lists.
    """

    base: tuple[float, ...]
    done: tuple[TriedRate, ...]
    paired: bool

    def against(self, trial: TriedRate, other: TriedRate | None = None) -> Difference:
        """The difference of a trial's losses from those of another one, or of the start; infinite if it blew up."""
        others = self.base if other is None else other.losses
        if trial.losses is None or others is None:
            return Difference(math.inf, 0.0)
        return compare(trial.losses, others, paired=self.paired)

    def hurts(self, trial: TriedRate) -> bool:
        """Whether it clearly raised the loss, or blew up."""
        return self.against(trial).t > APART

    @property
    def _longest(self) -> int:
        return max(trial.length for trial in self.done)

    @property
    def ranked(self) -> list[TriedRate]:
        """The longest trials, by rate, without those above the lowest rate that blew up, which can't be trusted."""
        ceiling = min((trial.rate for trial in self.done if trial.losses is None), default=math.inf)
        return sorted(trial for trial in self.done if trial.length == self._longest and trial.rate < ceiling)

    @property
    def best(self) -> TriedRate | None:
        """The trial of `ranked` with the lowest loss."""
        return min(self.ranked, key=lambda trial: trial.mean, default=None)

    def alike(self, best: TriedRate) -> list[TriedRate]:
        """The trials of `ranked` that can't be told from the best; more of them if that one may have won by chance."""
        apart = APART if self.against(best).t <= -SURE else SURE
        return [trial for trial in self.ranked if trial is best or self.against(trial, best).t < apart]

    def next_rate(self, low: float, high: float, *, bounded: bool = True) -> float | None:
        """The rate to try next, until the best one has a clearly worse one below it and a worse one above it.

        Args:
            low: the lowest rate that may be tried.
            high: the highest.
            bounded: whether the ramp found a rate that blows up; if not, the first trial's rate is already very high.

        Returns:
            The rate, absolute; None if enough rates were tried.
        """
        rates = [trial.rate for trial in self.done if trial.length == self._longest]
        lower = min(rates) / STEP if min(rates) / STEP >= low else None
        best = self.best
        higher = max(rates) * STEP if max(rates) * STEP <= high else None
        well = best is not None and self.against(best).t <= -STRONG
        if bounded and well and len(rates) == 1 and higher is not None:
            # a first rate that does so well is more likely too low than too high
            return higher
        if best is None or best.rate == min(rates):
            return lower
        if best.rate == max(rates):
            return higher
        return lower if self.alike(best)[0].rate == min(rates) else None

    def suggestion(self, horizon: Horizon, low: float, high: float, *, bounded: bool) -> Suggestion:
        """The rate that the trials speak for.

        Args:
            horizon: how long the rate must be good for.
            low: the lowest rate that may be suggested.
            high: the highest.
            bounded: whether a rate in range is known to blow up.
        """
        best = self.best
        tried = self.words()
        if best is None:
            lowest = min(trial.rate for trial in self.done)
            return Suggestion(None, f"the loss blew up even at {lowest:.3g}, the lowest rate tried: lower max_lr")
        fell = self.against(best).t
        if not bounded and all(self._nothing(trial) for trial in self.done):
            return Suggestion(None, unbounded_words(high))
        alike = self.alike(best)
        span = alike[0].rate, alike[-1].rate
        # the weaker the evidence, the closer to the lowest of the rates that can't be told apart
        middle, doubt = self._middle(best), weakness(fell)
        if fell <= -SURE and self._on_the_edge(best):
            middle -= UNTRIED * math.log(STEP)
        peak = math.exp(middle + horizon.care * doubt * min(0.0, math.log(span[0]) - middle) * (span[0] < best.rate))
        share = horizon.share(best.length, fell)
        rate = min(max(share * peak, low), high)
        falling = fell <= -APART and not bounded and best.rate == max(trial.rate for trial in self.done)
        sure = fell <= -SURE and span[1] <= WIDE * span[0] and not falling
        how = "lowest loss" if fell <= -APART else "careful end: no rate lowered the loss beyond doubt"
        if fell <= -APART and span[0] < best.rate and peak < best.rate:
            how = "careful end of the best"
        if falling:
            more = "max_lr" if best.rate * STEP > high else "number of steps"
            how += f", still falling at the highest rate tried: a higher {more} may find more"
        words = f"{share:.2g} of {peak:.3g} ({how}; change of the loss at {tried})"
        if rate != share * peak:
            words += f", held at {'min_lr' if rate == low else 'max_lr'} {rate:.3g}"
        words += ", sure" if sure else ", unsure"
        if not sure and span[0] < span[1]:
            words += f": {span[0]:.2g} to {span[1]:.2g} can't be told apart"
        return Suggestion(rate, words, sure, span[0], span[1], share)

    def _on_the_edge(self, best: TriedRate) -> bool:
        """Whether no lower rate was tried, and the next higher one lowered the loss by less than half as much."""
        above = [trial for trial in sorted(self.done) if trial.rate > best.rate and trial.length == best.length]
        if best.rate > min(trial.rate for trial in self.done) or not above:
            return False
        return self.against(above[0]).mean > 0.5 * self.against(best).mean

    def _nothing(self, trial: TriedRate) -> bool:
        """Whether the change of the loss is within its rounding error."""
        change = self.against(trial)
        return abs(change.mean) <= 2.0 * ROUNDING * max(map(abs, self.base))

    def words(self) -> str:
        """What the longest trials did to the loss, in words, lowest rate first."""
        return ", ".join(
            f"{trial.rate:.2g}: {self._words(trial)}" for trial in sorted(self.done) if trial.length == self._longest
        )

    def _words(self, trial: TriedRate) -> str:
        if trial.losses is None:
            return "blew up"
        change = self.against(trial)
        return f"{change.mean:+.2g} ± {change.error:.1g}"

    def _middle(self, best: TriedRate) -> float:
        """The log of the rate at which a parabola through the best trial and its neighbours is lowest."""
        ranked = self.ranked
        place, middle = ranked.index(best), math.log(best.rate)
        if 0 < place < len(ranked) - 1:
            left, right = ranked[place - 1].mean, ranked[place + 1].mean
            middle += _vertex(left, best.mean, right) * math.log(STEP)
        return middle


def _vertex(left: float, middle: float, right: float) -> float:
    """Where the parabola through three equally spaced points is lowest, in spacings from the middle, at most half."""
    bend = left - 2.0 * middle + right
    return 0.0 if bend <= 0.0 else max(-0.5, min(0.5, 0.5 * (left - right) / bend))
