"""Suggestion: which rate does a curve of losses over rising rates speak for?"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lightning_lr.saved import fields

LEAST_POINTS = 6
"""A curve of fewer finite points says nothing."""

SMOOTHING = 0.6
"""The weight of the neighbours in the running mean."""

SLIDE_WINDOW, SLIDE_THRESHOLD = 0.15, 0.005
"""The slide rule's window as a share of the curve, and the difference of slopes (per point, as a share of the curve's
drop) at which it stops."""

HUGE = 1e100
"""A loss of this magnitude is as good as infinite (no float of 32 bits reaches it), and its square still isn't."""

OUTSIDE_NOISE = 3.0
"""A loss so many standard deviations away from the level of the lowest rates has changed."""


@dataclass(frozen=True)
class Suggestion:
    """A suggested rate, or a refusal in words.

    Args:
        rate: the rate, absolute; None for a refusal.
        words: how the rate was found, or why there is none and what to do.
        sure: whether the losses leave no doubt; None where a rule can't tell.
        low: the lowest rate that could not be told from the best one; None where that isn't known.
        high: the highest.
        share: what share of the best rate is suggested; None where that isn't known.
    """

    rate: float | None
    words: str
    sure: bool | None = None
    low: float | None = None
    high: float | None = None
    share: float | None = None

    @property
    def refused(self) -> bool:
        """Whether there is no rate."""
        return self.rate is None

    def to_dict(self) -> dict[str, Any]:
        """A dict of plain values, for a checkpoint."""
        return {"version": 2, **asdict(self)}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Suggestion:
        """The suggestion that `to_dict` gave.

        Raises:
            SavedStateError: for a version that this release doesn't know.
        """
        return cls(**fields(saved, 2, cls))


def smooth(losses: Sequence[float], smoothing: float = SMOOTHING) -> list[float]:
    """The median of every three neighbours, so that no single outlier counts, and of those an exponential running mean,
    taken forth and back so that it doesn't lag.

    Args:
        losses: finite values.
        smoothing: the weight of the neighbours, in [0, 1); the ends are debiased.

    Returns:
        As many values.

    Example:
        >>> smooth([2.0, 2.0, 1e9, 2.0, 2.0])
        [2.0, 2.0, 2.0, 2.0, 2.0]
    """
    medians = [sorted(losses[max(0, i - 1) : i + 2]) for i in range(len(losses))]
    middle = [values[len(values) // 2] for values in medians]
    there = _running_mean(middle, smoothing)
    return _running_mean(there[::-1], smoothing)[::-1]


def _running_mean(values: Sequence[float], smoothing: float) -> list[float]:
    mean, weight, means = 0.0, 0.0, []
    for value in values:
        mean = smoothing * mean + (1.0 - smoothing) * value
        weight = smoothing * weight + (1.0 - smoothing)
        means.append(mean / weight)
    return means


def steepest(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """The rate at which the smoothed loss falls fastest per unit of log rate.

    Differentiated over the rate itself instead of its logarithm, the answer is nearly always the lowest rate.

    Args:
        rates: rising, > 0.
        losses: finite, one for each rate.

    Returns:
        The rate, or None where the loss falls nowhere.

    Source: Smith 2017, "Cyclical learning rates", section 3.3, as read by fastai (`steep`).
    """
    x, y = [math.log(rate) for rate in rates], smooth(losses)
    slopes = [(y[i + 1] - y[i - 1]) / (x[i + 1] - x[i - 1]) for i in range(1, len(y) - 1)]
    best = min(range(len(slopes)), key=slopes.__getitem__)
    return rates[best + 1] if slopes[best] < 0.0 else None


def minimum(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """A tenth of the rate at which the smoothed loss is lowest.

    Args:
        rates: rising, > 0.
        losses: finite, one for each rate.

    Returns:
        The rate, or None where the loss is lowest at the lowest rate.

    Source: fastai (`minimum`).
    """
    y = smooth(losses)
    best = min(range(len(y)), key=y.__getitem__)
    return rates[best] / 10.0 if best > 0 else None


def valley(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """The middle of the longest run of ever lower smoothed losses, whatever lies between them.

    The longest strictly decreasing subsequence has a length; the rate lies half this length before its end.

    Args:
        rates: rising, > 0.
        losses: finite, one for each rate.

    Returns:
        The rate, or None where the loss falls nowhere.

    Source: fastai (`valley`, after ESRI's finder): one third and one sixth of the length after `end - length`.
    """
    ends: list[float] = []
    longest, end = 1, 0
    for i, loss in enumerate(smooth(losses)):
        length = bisect_left(ends, -loss)
        ends[length : length + 1] = [-loss]
        if length + 1 > longest:
            longest, end = length + 1, i
    if longest == 1:
        return None
    return rates[max(0, end - longest + longest // 3 + longest // 6)]


def slide(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """The left end of a window that slides from the highest rates down until the slopes at both of its ends agree.

    Args:
        rates: rising, > 0.
        losses: finite, one for each rate.

    Returns:
        The rate, or None where the slopes agree nowhere or at once.

    Source: fastai (`slide`); the slopes are taken of the loss as a share of the whole curve's drop, so that the
        threshold doesn't depend on the loss's unit.
    """
    y = smooth(losses)
    drop = max(y[: max(1, len(y) // 3)]) - min(y)
    if drop <= 0.0:
        return None
    slopes = [(y[min(i + 1, len(y) - 1)] - y[max(i - 1, 0)]) / (2.0 * drop) for i in range(len(y))]
    window = max(2, round(SLIDE_WINDOW * len(y)))
    found = None
    for right in range(len(y) - 1, window - 1, -1):
        if abs(slopes[right] - slopes[right - window]) <= SLIDE_THRESHOLD:
            break
        found = rates[right - window]
    return found


RULES: dict[str, Callable[[Sequence[float], Sequence[float]], float | None]] = {
    "steepest": steepest,
    "valley": valley,
    "slide": slide,
    "minimum": minimum,
}
"""The known rules on a curve, by name."""


def level_and_noise(losses: Sequence[float]) -> tuple[float, float]:
    """The median of losses under rates too low to matter, and their standard deviation (at least 1% of the median).

    A loss further than ten median deviations from the median is an outlier and doesn't count as noise.

    Args:
        losses: of magnitude below `HUGE`, at least one.
    """
    level = _median(losses)
    floor = max(0.01 * abs(level), 1e-12)
    reach = 10.0 * max(_median([abs(loss - level) for loss in losses]), floor)
    usual = [loss for loss in losses if abs(loss - level) <= reach]
    mean = math.fsum(usual) / len(usual)
    noise = math.sqrt(math.fsum((loss - mean) ** 2 for loss in usual) / len(usual))
    return level, max(noise, floor)


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else 0.5 * (ordered[middle - 1] + ordered[middle])


def suggest(rule: str, rates: Sequence[float], losses: Sequence[float]) -> Suggestion:
    """Asks a known rule for a rate on one rising curve, and refuses where the curve shows nothing.

    Args:
        rule: a name in `RULES`.
        rates: rising, > 0.
        losses: one for each rate, each seen before the update with that rate. What follows the first loss that is not
            finite is left out.

    Returns:
        The suggestion or a refusal.

    Raises:
        ValueError: for an unknown rule, or unequal lengths.

    Example:
        >>> rates = [10.0 ** (e / 4) for e in range(-28, 3)]
        >>> losses = [2.3 - 1.8 / (1.0 + (3e-3 / rate) ** 1.5) + (rate / 0.3) ** 2 for rate in rates]
        >>> 1e-3 < suggest("steepest", rates, losses).rate < 5e-3
        True
        >>> suggest("steepest", rates, [2.3] * len(rates)).refused
        True
    """
    if rule not in RULES:
        raise ValueError(f"suggest must be one of {', '.join(map(repr, RULES))}, got {rule!r}")
    if len(rates) != len(losses):
        raise ValueError(f"a curve needs one loss for each rate, got {len(rates)} rates and {len(losses)} losses")
    count = next((i for i, loss in enumerate(losses) if not abs(loss) < HUGE), len(losses))
    if count == 0:
        return Suggestion(None, NO_LOSS)
    if count < LEAST_POINTS:
        return Suggestion(
            None, f"the loss was finite at {count} points only, the last at {rates[count - 1]:.3g}: lower min_lr"
        )
    blew_up = count < len(losses)
    rates, losses = rates[:count], losses[:count]
    level, noise = level_and_noise(losses[: max(3, count // 3)])
    y = smooth(losses)
    low = min(range(count), key=y.__getitem__)
    blew_up = blew_up or losses[-1] > level + OUTSIDE_NOISE * noise or y[-1] > y[low] + OUTSIDE_NOISE * noise
    if y[low] > level - noise:
        return Suggestion(None, unbounded_words(rates[-1]) if not blew_up else FELL_NOWHERE)
    if low >= count - 2 and not blew_up:
        return Suggestion(None, falling_words(rates[-1]))
    rate = RULES[rule](rates, losses)
    return Suggestion(None, FELL_NOWHERE) if rate is None else Suggestion(rate, f"{rule} rule on {count} points")


NO_LOSS = "the loss was not finite at the first update: the data or the model is at fault, not the rate"
FELL_NOWHERE = "the loss fell at no rate before it blew up: lower min_lr, or give every rate more updates with steps"


def unbounded_words(rate: float) -> str:
    """The refusal for a curve on which no rate did anything."""
    return (
        f"the curve is flat: no rate up to {rate:.3g} changed the loss; "
        f"raise max_lr, or check that the loss depends on the weights"
    )


def falling_words(rate: float) -> str:
    """The refusal for a curve without a right end."""
    return f"the loss was still falling at {rate:.3g}, the highest rate tried: raise max_lr"
