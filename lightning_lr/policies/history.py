"""History: what has been seen of one optimizer's losses and gradients, in numbers that a checkpoint holds."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

from lightning_lr.statistics.window import centre

WINDOW = 128
"""Accepted updates that are remembered, with their largest loss and norm; what a run forgets it can meet anew."""

LOOK = 8
"""Updates between two looks at the level, and before a largest norm is believed."""

LEVEL = 24
"""Losses that make up a level: their median has a standard error of a quarter of a loss's noise."""

LOST = 0.15
"""The share of the run's gain that a level must have lost. Within 0.1 of the gain a run counts as recovered."""

NOISE, SURE = 4.0, 5.0
"""Standard errors of a level within which nothing is suspicious, and by which a run must have fallen to have learned
anything for certain. The best of many levels lies two to three of them low by chance."""

FLAT = 0.05
"""The least rise that is suspicious, as a share of the level: for a run that has gained next to nothing."""

LEAST = 0.03
"""Added to the root mean square of the weights before it is compared with that of the start."""

FORGIVEN = 1000
"""Accepted updates after which the next suspicion needs to last only half as long."""


class History(NamedTuple):
    """What has been seen of one optimizer's losses and gradients.

    Args:
        losses: of the last accepted updates, each limited to what can be believed.
        norms: of their gradients, as limited.
        updates: accepted since the start.
        initial: the level that the run began at; None before the first.
        best: its lowest level; None before the first.
        noise: the standard deviation of a loss from one update to the next, without a trend.
        size: the root mean square of the weights at the start, with `LEAST`; 0.0 before it was measured.
        growth: how many times larger it has become.
        high: losses in a row above all of the window; those above where the run began counted twice.
        up: looks in a row that found the level up.
        nonfinite: updates in a row that were not finite.
        odd: updates since a loss too good to be true.
        patience: by `suspicion.REASONS`: how often the next suspicion must be doubled.
        asked: the count at the latest trial.
    """

    losses: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()
    updates: int = 0
    initial: float | None = None
    best: float | None = None
    noise: float = 0.0
    size: float = 0.0
    growth: float = 1.0
    high: int = 0
    up: int = 0
    nonfinite: int = 0
    odd: int = LEVEL
    patience: tuple[int, int, int, int] = (0, 0, 0, 0)
    asked: int = 0

    @property
    def gain(self) -> float:
        """What the run has learned, in its loss's unit."""
        return 0.0 if self.best is None or self.initial is None else max(self.initial - self.best, 0.0)

    @property
    def gained(self) -> bool:
        """Whether it has learned more than noise could explain."""
        return self.gain > SURE * _error(self.noise)

    @property
    def margin(self) -> float:
        """By how much a level above the best is suspicious; before there is one, that of a single loss."""
        if self.best is None:
            return max(abs(self.initial or 0.0), NOISE * self.noise)
        return max(LOST * self.gain, NOISE * _error(self.noise), FLAT * abs(self.best))

    @property
    def usual(self) -> float:
        """Losses up to this are usual."""
        if self.best is not None:
            return self.best + self.margin
        return math.inf if self.initial is None else self.initial + self.margin

    @property
    def highest(self) -> float:
        """Losses above this are beyond everything in the window."""
        before = self.losses[: len(self.losses) - self.high] if self.high else self.losses
        return max(before or self.losses, default=math.inf) + self.margin

    def tops(self, loss: float) -> bool:
        """Whether the loss is beyond everything in the window. A look at the latest few settles most cases."""
        if self.losses and not self.high and loss <= max(self.losses[-LOOK:]) + self.margin:
            return False
        return loss > self.highest

    @property
    def far(self) -> float:
        """Losses above this are beyond everything that the run has met; inf while it has learned nothing."""
        if not self.gained or self.initial is None:
            return math.inf
        return max(self.highest, self.initial) + 8.0 * max(self.gain, abs(self.initial))

    def largest_norm(self, limit: float | None) -> float:
        """The largest norm that the next gradient may have."""
        if limit is None or len(self.norms) < LOOK:
            return math.inf
        # the latest are not believed yet: bad batches in a row must not raise the limit for one another. 30 of them
        # raise it 4^3 times; where only three updates were not believed, 4^7 times
        most = max(self.norms[: max(LOOK, len(self.norms) - LOOK)])
        return limit * most if most > 0.0 else math.inf

    def exceeds(self, limit: float | None, norm: float) -> bool:
        """Whether the norm is above the largest one. A look at the latest few that are believed settles most cases."""
        if limit is not None and len(self.norms) >= 2 * LOOK and norm <= limit * max(self.norms[-2 * LOOK : -LOOK]):
            return False
        return norm > self.largest_norm(limit)

    def accepted(self, loss: float, norm: float) -> History:
        """The history after an update was applied; `norm`: its gradient's, as limited."""
        high, odd, entry = 0, self.odd + 1, loss
        if self.tops(loss):
            # above where it began, a run has lost all that it has learned
            high = self.high + (2 if self.gained and self.initial is not None and loss > self.initial else 1)
            # one that is beyond belief must not set the measure of all that come
            entry = min(loss, self.highest + max(self.gain, self.margin))
        elif self.best is not None and loss < self.best - max(self.gain, self.margin) and loss < min(self.losses):
            odd = 0
        losses, count = (*self.losses[1 - WINDOW :], entry), self.updates + 1
        initial = _beginning(losses) if count <= LOOK else self.initial
        now = History(
            losses, (*self.norms[1 - WINDOW :], norm), count, initial, self.best, self.noise, self.size, self.growth,
            high, self.up, 0, odd, self.patience, self.asked,
        )  # fmt: skip
        return _looked(now) if count % LOOK == 0 and len(losses) >= LEVEL else now

    def sized(self, size: float) -> History:
        """The history after the root mean square of the weights was measured."""
        if self.size == 0.0 and math.isfinite(size):
            return self._replace(size=size + LEAST)
        return self._replace(growth=max(self.growth, (size + LEAST) / self.size) if math.isfinite(size) else math.inf)

    def at_new_level(self, level: float) -> History:
        """The history after the data has changed for good: the present level is the one to beat."""
        # where the run began stays: a level that was high for a moment would be a gain that is no one's
        return self._replace(losses=(level,), best=level, high=0, up=0)


def _beginning(losses: tuple[float, ...]) -> float:
    """The level of the first losses: one of them may be low by chance, and those of an explosion are no beginning."""
    return max(sorted(losses)[(len(losses) - 1) // 4], min(losses[0], centre(losses)))


def _looked(now: History) -> History:
    """The history after a look at the level."""
    recent = now.losses[-64:]
    # the mean, not the median: a loss that is nothing in most batches, and much in some, is a noisy one
    noise = sum(abs(b - a) for a, b in itertools.pairwise(recent)) / (1.128 * (len(recent) - 1))
    level = centre(now.losses[-LEVEL:])
    now = now._replace(noise=noise, best=level if now.best is None else min(now.best, level))
    patience = now.patience
    if now.updates % FORGIVEN < LOOK:
        patience = tuple(max(0, p - 1) for p in patience)
    return now._replace(up=now.up + 1 if level > now.usual else 0, patience=patience)


def _error(noise: float) -> float:
    """The standard error of a level."""
    return 1.25 * noise / math.sqrt(LEVEL)
