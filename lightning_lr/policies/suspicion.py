"""Suspicion: what has been seen of one optimizer's losses and gradients, and whether that gives reason for a trial.

It decides nothing: what follows from a suspicion is a trial (`evidence`). *Tuning runs*, below, are the seven tasks of
`benchmarks/divergence.py` and the tuning half of `benchmarks/zoo.py`; the zoo's other half took no part.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal, NamedTuple

from lightning_lr.statistics.window import centre

Reason = Literal["", "high", "level", "nonfinite", "start"]
REASONS: tuple[Reason, ...] = ("high", "level", "nonfinite", "start")

WINDOW = 128
"""Accepted updates that are remembered, with their largest loss and norm; what a run forgets it can meet anew."""

LOOK = 8
"""Updates between two looks at the level, and before a largest norm is believed."""

LEVEL = 24
"""Losses that make up a level: their median has a standard error of a quarter of a loss's noise."""

IN_A_ROW = 4
"""Losses in a row above all of the window: by chance, once in twelve million. One above where the run began counts
twice."""

UP = 2
"""Looks in a row that must find the level up. With one, half of the tuning half's healthy kinds had trials."""

NONFINITE = 3
"""So many updates in a row that are not finite are no accident."""

LOST = 0.15
"""The share of the run's gain that a level must have lost. Within 0.1 of the gain a run counts as recovered."""

NOISE, SURE = 4.0, 5.0
"""Standard errors of a level within which nothing is suspicious, and by which a run must have fallen to have learned
anything for certain. The best of many levels lies two to three of them low by chance."""

FLAT = 0.05
"""The least rise that is suspicious, as a share of the level: for a run that has gained next to nothing."""

DEAD_AFTER = 40
"""Updates before a run that has learned nothing is suspected to be dead."""

LARGE, LEAST = 2.6, 0.03
"""So many times as large as at the start (their root mean square, with the second number added to it) are weights that
a rate has blown up: dead nets had 4 to 20 within 96 updates, sound ones at their best rate up to 2, and a parity net on
its plateau, at ten times its best rate, 3.7."""

PATIENCE = 6
"""A suspicion that a trial has not borne out must last twice as long the next time (four times, for a level), which
counts twice after a trial that blamed the data; at most so many times."""

FORGIVEN = 1000
"""Accepted updates after which it has to last half as long again."""


class Seen(NamedTuple):
    """What has been seen.

    Args:
        losses: of the last accepted updates, each no higher than can be believed.
        norms: of their gradients, as limited.
        updates: accepted since the start.
        initial: the level that the run began at; None before the first.
        best: its lowest level; None before the first.
        noise: the standard deviation of a loss from one update to the next, without a trend.
        size: the root mean square of the weights at the start, with `LEAST`; 0.0 before it was measured.
        growth: by how many times it has grown.
        high: losses in a row above all of the window; those above where the run began counted twice.
        up: looks in a row that found the level up.
        nonfinite: updates in a row that were not finite.
        odd: updates since a loss too good to be true.
        patience: by `REASONS`: how often the next suspicion must be doubled.
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
        """Has it learned more than noise could feign?"""
        return self.gain > SURE * _error(self.noise)

    @property
    def margin(self) -> float:
        """By how much a level above the best is suspicious; before there is one, that of a single loss."""
        if self.best is None:
            return max(abs(self.initial or 0.0), NOISE * self.noise)
        return max(LOST * self.gain, NOISE * _error(self.noise), FLAT * abs(self.best))

    @property
    def usual(self) -> float:
        """Up to which losses are as usual."""
        if self.best is not None:
            return self.best + self.margin
        return math.inf if self.initial is None else self.initial + self.margin

    @property
    def highest(self) -> float:
        """Above which a loss is beyond everything in the window."""
        before = self.losses[: len(self.losses) - self.high] if self.high else self.losses
        return max(before or self.losses, default=math.inf) + self.margin

    def tops(self, loss: float) -> bool:
        """Is the loss beyond everything in the window? The latest few tell of most losses that they are not."""
        if self.losses and not self.high and loss <= max(self.losses[-LOOK:]) + self.margin:
            return False
        return loss > self.highest

    @property
    def far(self) -> float:
        """Above which nothing that this run has ever met lies; inf while it has learned nothing."""
        if not self.gained or self.initial is None:
            return math.inf
        return max(self.highest, self.initial) + 8.0 * max(self.gain, abs(self.initial))


def largest_norm(seen: Seen, limit: float | None) -> float:
    """The largest norm that the next gradient may have."""
    if limit is None or len(seen.norms) < LOOK:
        return math.inf
    # the latest are not believed yet: bad batches in a row must not raise the limit for one another. 30 of them
    # raise it 4^3 times; where only three updates were not believed, 4^7 times
    most = max(seen.norms[: max(LOOK, len(seen.norms) - LOOK)])
    return limit * most if most > 0.0 else math.inf


def exceeds(seen: Seen, limit: float | None, norm: float) -> bool:
    """Is the norm above the largest one? The latest few that are believed tell of most norms that they are not."""
    if limit is not None and len(seen.norms) >= 2 * LOOK and norm <= limit * max(seen.norms[-2 * LOOK : -LOOK]):
        return False
    return norm > largest_norm(seen, limit)


def accepted(seen: Seen, loss: float, norm: float) -> Seen:
    """An update was applied; `norm`: its gradient's, as limited."""
    high, odd, entry = 0, seen.odd + 1, loss
    if seen.tops(loss):
        # above where it began, a run has lost all that it has learned
        high = seen.high + (2 if seen.gained and seen.initial is not None and loss > seen.initial else 1)
        # one that is beyond belief must not set the measure of all that come
        entry = min(loss, seen.highest + max(seen.gain, seen.margin))
    elif seen.best is not None and loss < seen.best - max(seen.gain, seen.margin) and loss < min(seen.losses):
        odd = 0
    losses, count = (*seen.losses[1 - WINDOW :], entry), seen.updates + 1
    initial = _beginning(losses) if count <= LOOK else seen.initial
    seen = Seen(
        losses, (*seen.norms[1 - WINDOW :], norm), count, initial, seen.best, seen.noise, seen.size, seen.growth,
        high, seen.up, 0, odd, seen.patience, seen.asked,
    )  # fmt: skip
    return _looked(seen) if count % LOOK == 0 and len(losses) >= LEVEL else seen


def sized(seen: Seen, size: float) -> Seen:
    """The root mean square of the weights was measured."""
    if seen.size == 0.0 and math.isfinite(size):
        return seen._replace(size=size + LEAST)
    return seen._replace(growth=max(seen.growth, (size + LEAST) / seen.size) if math.isfinite(size) else math.inf)


def wants_size(seen: Seen) -> bool:
    """Whether the weights' size is to be measured at the next update: while nothing is learned, now and then."""
    due = seen.high > 0 or (seen.updates % LOOK == LOOK - 1 and seen.updates < WINDOW)
    return seen.size == 0.0 or (due and not seen.gained)


def reason(seen: Seen, *, started: bool) -> Reason:
    """Why a trial is due; empty when none is. `started`: whether the best copy is a later one than the start's."""
    high, level, nonfinite, start = seen.patience
    if seen.nonfinite >= NONFINITE * 2**nonfinite:
        return "nonfinite"
    if seen.high >= IN_A_ROW * 2**high:
        return "high"
    if seen.up >= UP * 4**level:
        return "level"
    if (
        not started
        and seen.growth > LARGE
        and seen.updates - seen.asked >= DEAD_AFTER * 2**start
        and not seen.gained
        and seen.best is not None
    ):
        return "start"
    return ""


def doubted(seen: Seen, why: Reason, times: int = 1) -> Seen:
    """A trial has not borne this suspicion out; `times`: how often the next one is doubled for it."""
    patience = list(seen.patience)
    place = REASONS.index(why)
    patience[place] = min(patience[place] + times, PATIENCE)
    return seen._replace(patience=tuple(patience), high=0, up=0, asked=seen.updates)


def new_level(seen: Seen, level: float) -> Seen:
    """The data has changed for good: the present level is the one to beat."""
    # where the run began stays: a level that was high for a moment would be a gain that is no one's
    return seen._replace(losses=(level,), best=level, high=0, up=0)


def _beginning(losses: tuple[float, ...]) -> float:
    """The level of the first losses: one of them may be low by chance, and those of an explosion are no beginning."""
    return max(sorted(losses)[(len(losses) - 1) // 4], min(losses[0], centre(losses)))


def _looked(seen: Seen) -> Seen:
    recent = seen.losses[-64:]
    # the mean, not the median: a loss that is nothing in most batches, and much in some, is a noisy one
    noise = sum(abs(b - a) for a, b in itertools.pairwise(recent)) / (1.128 * (len(recent) - 1))
    level = centre(seen.losses[-LEVEL:])
    seen = seen._replace(noise=noise, best=level if seen.best is None else min(seen.best, level))
    patience = seen.patience
    if seen.updates % FORGIVEN < LOOK:
        patience = tuple(max(0, p - 1) for p in patience)
    return seen._replace(up=seen.up + 1 if level > seen.usual else 0, patience=patience)


def _error(noise: float) -> float:
    """The standard error of a level."""
    return 1.25 * noise / math.sqrt(LEVEL)
