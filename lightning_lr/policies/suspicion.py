"""Suspicion: what has been seen of one optimizer's losses and gradients, and whether that gives reason to try.

It decides nothing: what follows from a suspicion is a trial (`evidence`).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from lightning_lr.statistics.window import centre

Reason = Literal["", "high", "level", "nonfinite", "start"]

WINDOW = 128
"""Accepted updates that are remembered: half an epoch of a small data set, and 1.5 KB of state."""

FEW = 8
"""Updates before a largest norm is believed, and between two looks at the level."""

LEVEL = 24
"""Losses that make up a level: their median has a standard error of a quarter of the noise."""

IN_A_ROW = 4
"""Losses in a row above all of the window: by chance, one of 128^4."""

NONFINITE = 3
"""So many updates in a row that are not finite are no accident."""

LOST = 0.15
"""The share of the run's gain that a level must have lost. A run counts as recovered within 0.1 of it."""

NOISE = 4.0
"""Standard errors of a level that no suspicion lies within."""

SURE = 5.0
"""Standard errors of a level that a run must have gained before it has learned anything for certain."""

FLAT = 0.05
"""The same as a share of the level itself, for a run that has gained next to nothing."""

PERSISTENT = 2
"""Looks in a row that must find the level up."""

DEAD_AFTER = 24
"""Updates after a start that blew up before a run without any gain is suspected to be dead."""

LARGE = 3.0
"""So many times as large as at the start are weights that a rate has blown up: dead nets had 4 to 20 within 96 updates,
sound ones up to 3.7, and then had learned something."""

LEAST = 0.03
"""Added to the root mean square of weights: that they grow from next to nothing is no sign."""

MOST_PATIENCE = 6
"""A suspicion that a trial has not borne out must last twice as long the next time, at most 2^6 times."""

FORGIVEN = 1000
"""Updates after which it need last half as long again."""


class Seen(NamedTuple):
    """What has been seen.

    Args:
        losses: of the last accepted updates, each no more than the largest believable one.
        norms: of their gradients, as limited.
        count: accepted updates since the start.
        initial: the level that the run began at.
        best: its lowest level; None before the first.
        noise: the standard deviation of a loss from one update to the next, without the trend.
        margin: by how much a level above the best is suspicious.
        size: the root mean square of the weights at the start; 0.0 before the first.
        growth: the largest ratio of it since to that.
        high: losses in a row above all of the window.
        up: looks in a row that found the level up.
        nonfinite: updates in a row that were not finite.
        odd: updates since a loss far below everything known; such an update proves nothing.
        patience: by reason (high, level, nonfinite, start): how often the next suspicion must be doubled.
        asked: the count at the last trial.
    """

    losses: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()
    count: int = 0
    initial: float | None = None
    best: float | None = None
    noise: float = 0.0
    margin: float = math.inf
    size: float = 0.0
    growth: float = 1.0
    high: int = 0
    up: int = 0
    nonfinite: int = 0
    odd: int = FEW
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
    def level(self) -> float:
        """The present level."""
        return centre(self.losses[-LEVEL:])

    @property
    def usual(self) -> float:
        """Up to which losses are as usual."""
        if self.best is not None:
            return self.best + self.margin
        return math.inf if self.initial is None else self.initial + max(abs(self.initial), NOISE * self.noise)

    @property
    def highest(self) -> float:
        """Above which a loss is beyond everything in the window."""
        if not self.losses:
            return math.inf
        before = self.losses[: len(self.losses) - self.high] or self.losses
        room = self.margin if self.best is not None else abs(self.initial or 0.0) + self.gain
        return max(before) + room

    @property
    def far(self) -> float:
        """Above which nothing that this run has ever met lies."""
        worst = max(max(self.losses, default=-math.inf), self.initial if self.initial is not None else -math.inf)
        return worst + max(2.0 * self.gain, abs(self.initial or 0.0))


ORDER: tuple[Reason, ...] = ("high", "level", "nonfinite", "start")


def largest_norm(seen: Seen, limit: float | None) -> float:
    """The largest norm that the next gradient may have."""
    if limit is None or len(seen.norms) < FEW:
        return math.inf
    most = max(seen.norms)
    return limit * most if most > 0.0 else math.inf


def accepted(seen: Seen, loss: float, limited: float) -> Seen:
    """An update was applied, with a gradient of the norm `limited`."""
    highest = seen.highest
    high = seen.high + 1 if loss > highest else 0
    # one that is beyond belief must not set the measure of all that come
    entry = min(loss, highest + max(seen.gain, abs(seen.initial or 0.0), seen.margin if seen.best is not None else 0.0))
    losses = (*seen.losses, entry)[-WINDOW:]
    count = seen.count + 1
    odd = seen.odd + 1
    if seen.best is not None and loss < min(seen.losses) - max(seen.gain, seen.margin):
        odd = 0
    seen = seen._replace(
        losses=losses,
        norms=(*seen.norms, limited)[-WINDOW:],
        count=count,
        initial=_beginning(losses) if count <= FEW else seen.initial,
        high=high,
        nonfinite=0,
        odd=odd,
    )
    return _looked(seen) if count % FEW == 0 and len(losses) >= LEVEL else seen


def sized(seen: Seen, size: float) -> Seen:
    """The root mean square of the weights is known."""
    if not math.isfinite(size):
        return seen._replace(growth=math.inf)
    if seen.size == 0.0:
        return seen._replace(size=size + LEAST)
    return seen._replace(growth=max(seen.growth, (size + LEAST) / seen.size))


def wants_size(seen: Seen) -> bool:
    """Whether the weights' size is to be measured at the next update."""
    return seen.size == 0.0 or (not seen.gained and seen.count < WINDOW and (seen.high > 0 or seen.count % FEW == FEW - 1))


def _beginning(losses: tuple[float, ...]) -> float:
    """The level of the first losses: one of them may be low by chance, and those of an explosion are no beginning."""
    return max(sorted(losses)[(len(losses) - 1) // 4], min(losses[0], centre(losses)))


def _error(noise: float) -> float:
    """The standard error of a level."""
    return 1.25 * noise / math.sqrt(LEVEL)


def _looked(seen: Seen) -> Seen:
    """Every few updates: the level, its noise, and what may count as up."""
    recent = seen.losses[-64:]
    steps = [abs(b - a) for a, b in zip(recent, recent[1:], strict=False)]
    noise = 1.4826 * centre(steps) / math.sqrt(2.0)
    level = seen.level
    best = level if seen.best is None else min(seen.best, level)
    gain = max((seen.initial or 0.0) - best, 0.0)
    margin = max(LOST * gain, NOISE * _error(noise), FLAT * abs(best))
    up = seen.up + 1 if level > best + margin else 0
    patience = seen.patience
    if seen.count % FORGIVEN < FEW:
        patience = tuple(max(0, p - 1) for p in patience)
    return seen._replace(best=best, noise=noise, margin=margin, up=up, patience=patience)


def reason(seen: Seen) -> Reason:
    """Why a trial is due; empty when none is."""
    high, level, nonfinite, start = seen.patience
    if seen.nonfinite >= NONFINITE * 2**nonfinite:
        return "nonfinite"
    if seen.high >= IN_A_ROW * 2**high:
        return "high"
    if seen.up >= PERSISTENT * 4**level:
        return "level"
    since = seen.count - seen.asked
    if (
        since >= DEAD_AFTER * 2**start
        and seen.initial is not None
        and seen.best is not None
        and not seen.gained
        and seen.growth > LARGE
    ):
        return "start"
    return ""


def asked(seen: Seen, why: Reason, *, doubt: bool) -> Seen:
    """A trial has ended; with `doubt` it has not borne the suspicion out."""
    patience = list(seen.patience)
    place = ORDER.index(why)
    if doubt:
        patience[place] = min(patience[place] + 1, MOST_PATIENCE)
    return seen._replace(patience=tuple(patience), high=0, up=0, nonfinite=0, asked=seen.count)


def new_level(seen: Seen, level: float) -> Seen:
    """The data has changed for good: the present level is the one to beat."""
    initial = level if seen.initial is None else max(seen.initial, level)
    return seen._replace(losses=(level,), initial=initial, best=level, high=0, up=0)
