"""TriedRates: rates that were each tried from the same weights, and what they say about the rate of a run."""

from __future__ import annotations

import math
from typing import NamedTuple

from lightning_lr.policies.suggestion import Suggestion, unbounded_words
from lightning_lr.statistics.comparison import ROUNDING, Difference, compare

STEP = 3.0
"""The ratio of neighbouring trials' rates."""

APART, SURE = 2.0, 3.0
"""So many standard errors tell two rates apart, and so many make a change of the loss sure."""

WIDE = 5.0
"""Where the rates that can't be told from the best span more than this ratio, the suggestion is unsure."""

MARGIN = 0.3
"""The share of the best trial's rate that is suggested where the run's length isn't known."""

HORIZON = {"falls": {"sgd": 0.2, "adaptive": 0.1}, "stays": {"sgd": 0.25, "adaptive": 0.2}}
"""The rate that is best over n updates is too high for N: `(n / N) ** power` of it is suggested, with this power where
the rate falls at the run's end or stays, and for the optimizer's kind. On the tuning half of the kinds, 300 and 1,000
updates, shares from 0.28 to 0.5 that these powers give were the best of a grid of shares from 0.1 to 1."""


UNTRIED = 0.5
"""Where the best rate is the lowest tried, and just below a far worse one, so many steps less are taken for it."""

CARE = {"sgd": 1.0, "adaptive": 0.5}
"""See `Horizon.care`: too high a rate kills a net under SGD more often than under Adam."""

MATTERS = 0.01
"""A gain of less than this share of the loss raises no rate."""

STRONG, STRONGEST = 8.0, 20.0
WEAK, BEYOND = 1.4, 0.5
"""The power is `WEAK` times as high where the loss fell by `SURE` standard errors or less, as it is at `STRONG`, and
`BEYOND` times from `STRONGEST` on."""


class TriedRate(NamedTuple):
    """One rate's turn: some updates from the healthy start.

    Args:
        rate: absolute.
        start: the index of its first update in the sweep.
        length: how many updates it was to make.
        losses: at its end, on the probe batches, each before the update on it; None when it blew up.
    """

    rate: float
    start: int
    length: int
    losses: tuple[float, ...] | None = None

    @property
    def mean(self) -> float:
        """Its mean loss on the probe batches; infinite when it blew up."""
        return math.inf if self.losses is None else math.fsum(self.losses) / len(self.losses)


class Horizon(NamedTuple):
    """How long the rate is to be good for.

    Args:
        updates: of the run; None where its length isn't known.
        power: see `HORIZON`.
        care: how far down, of rates that can't be told apart, weak evidence takes the suggestion: 1 is to the lowest.
    """

    updates: float | None = None
    power: float = HORIZON["stays"]["sgd"]
    care: float = 1.0

    def share(self, length: int, t: float = -STRONG) -> float:
        """The share of a rate that is best over so many updates, in (0, 1].

        Args:
            length: the updates of its trial.
            t: by how many standard errors the loss fell in it, below 0: the less, the lower the share.

        Example:
            >>> round(Horizon(1000, 0.22).share(13), 2), Horizon(None).share(13)
            (0.38, 0.3)
        """
        beyond = min(1.0, max(0.0, (-t - STRONG) / (STRONGEST - STRONG)))
        times = 1.0 + (WEAK - 1.0) * weakness(t) - (1.0 - BEYOND) * beyond
        if self.updates is None or not 0.0 < self.updates < math.inf:
            return MARGIN**times
        return min(1.0, (length / self.updates) ** (times * self.power))


def weakness(t: float) -> float:
    """How little a change of the loss by so many standard errors (below 0 where it fell) says, in [0, 1]."""
    return min(1.0, max(0.0, (STRONG + t) / (STRONG - SURE)))


class TriedRates(NamedTuple):
    """The trials of one sweep, and the losses of the weights that they began from.

    Args:
        base: the losses of the start's weights on the probe batches.
        done: the trials that are over.
        paired: whether the n-th loss of all lists is of the same batch.
    """

    base: tuple[float, ...]
    done: tuple[TriedRate, ...]
    paired: bool

    def against(self, trial: TriedRate, other: TriedRate | None = None) -> Difference:
        """A trial's losses against those of another one, or of the start; infinitely above when it blew up."""
        others = self.base if other is None else other.losses
        if trial.losses is None or others is None:
            return Difference(math.inf, 0.0)
        return compare(trial.losses, others, paired=self.paired)

    def hurts(self, trial: TriedRate) -> bool:
        """Whether it raised the loss beyond doubt, or blew up."""
        return self.against(trial).t > APART

    @property
    def _longest(self) -> int:
        return max(trial.length for trial in self.done)

    @property
    def ranked(self) -> list[TriedRate]:
        """Those of the longest kind, by rate; above the lowest rate that blew up nothing is to be trusted."""
        ceiling = min((trial.rate for trial in self.done if trial.losses is None), default=math.inf)
        return sorted(trial for trial in self.done if trial.length == self._longest and trial.rate < ceiling)

    @property
    def best(self) -> TriedRate | None:
        """The one of `ranked` with the lowest loss."""
        return min(self.ranked, key=lambda trial: trial.mean, default=None)

    def alike(self, best: TriedRate) -> list[TriedRate]:
        """Those of `ranked` that can't be told from the best one; more are, where that one may have won by chance."""
        apart = APART if self.against(best).t <= -SURE else SURE
        return [trial for trial in self.ranked if trial is best or self.against(trial, best).t < apart]

    def following(self, low: float, high: float, *, bounded: bool = True) -> float | None:
        """The rate to try next, so that the best one has clearly worse ones below it and a worse one above.

        Args:
            low: the lowest rate that may be tried.
            high: the highest.
            bounded: whether the ramp found a rate that blows up; if not, the first trial's rate is a very high one.
        """
        rates = [trial.rate for trial in self.done if trial.length == self._longest]
        lower = min(rates) / STEP if min(rates) / STEP >= low else None
        best = self.best
        higher = max(rates) * STEP if max(rates) * STEP <= high else None
        well = best is not None and self.against(best).t <= -STRONG
        if bounded and well and len(rates) == 1 and higher is not None:
            # it does so well that it is more likely too low than too high
            return higher
        if best is None or best.rate == min(rates):
            return lower
        if best.rate == max(rates):
            return higher
        return lower if self.alike(best)[0].rate == min(rates) else None

    def suggestion(self, horizon: Horizon, low: float, high: float, *, bounded: bool) -> Suggestion:
        """What they speak for.

        Args:
            horizon: how long the rate is to be good for.
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
        # of rates that can't be told apart the lowest, the more so the weaker the evidence is
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
        """Whether no lower rate was tried, and the next higher one lost half of what this one gained, or more."""
        above = [trial for trial in sorted(self.done) if trial.rate > best.rate and trial.length == best.length]
        if best.rate > min(trial.rate for trial in self.done) or not above:
            return False
        return self.against(above[0]).mean > 0.5 * self.against(best).mean

    def _nothing(self, trial: TriedRate) -> bool:
        """Whether its rate changed nothing that the loss's own digits show."""
        change = self.against(trial)
        return abs(change.mean) <= 2.0 * ROUNDING * max(map(abs, self.base))

    def words(self) -> str:
        """What each rate of the longest kind did to the loss, lowest rate first."""
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


def second_opinion(trials: TriedRates, *, low: float, high: float) -> tuple[float | None, Suggestion]:
    """Whether the present rate, of the first trial, is still right: the rate to try next, or what came out.

    A rate that raises the loss over the next updates is too high: it gives way to the next lower one that doesn't. One
    that is even beaten by nine times itself is too low, and is tripled. That thrice the rate does better over few
    updates is no sign: a rate for many is chosen so. Nothing else changes the rate.

    Args:
        trials: so far, the present rate's first.
        low: the lowest rate that may be tried.
        high: the highest.

    Returns:
        The next rate to try, or None at the end; and the suggestion, if that is the end.
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
    # on a plateau a gain may be beyond doubt, and still next to nothing
    matters = abs(gain.mean) > MATTERS * abs(math.fsum(trials.base)) / len(trials.base)
    if gain.t < -SURE and fell.t < -SURE and matters:
        raised = rate * STEP
        words = f"second opinion: {far:.3g} is better beyond doubt than {rate:.3g}, so {raised:.3g} ({tried})"
        return None, Suggestion(raised, words, True, rate, far, 1.0)
    return None, kept


def _vertex(left: float, middle: float, right: float) -> float:
    """Where the parabola through three equally spaced points is lowest, in spacings from the middle, at most half."""
    bend = left - 2.0 * middle + right
    return 0.0 if bend <= 0.0 else max(-0.5, min(0.5, 0.5 * (left - right) / bend))
