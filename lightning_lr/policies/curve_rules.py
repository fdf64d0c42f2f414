"""The known rules that read a rate off one curve of losses over rising rates."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence

from lightning_lr.policies.suggestion import FELL_NOWHERE, NO_LOSS, Suggestion, falling_words, unbounded_words
from lightning_lr.statistics.level import HUGE, level_and_noise

LEAST_POINTS = 6
"""A curve of fewer finite points than this says nothing."""

SMOOTHING = 0.6
"""The weight of the neighbours in the running mean."""

SLIDE_WINDOW, SLIDE_THRESHOLD = 0.15, 0.005
"""The slide rule's window as a share of the curve, and the difference of slopes (per point, as a share of the curve's
drop) at which it stops."""

OUTSIDE_NOISE = 3.0
"""A loss has changed when it is this many standard deviations away from the level at the lowest rates."""


def smooth(losses: Sequence[float], smoothing: float = SMOOTHING) -> list[float]:
    """Smooths a curve without a lag.

    It takes the median of every three neighbours, so that no single outlier counts, and of the medians an exponential
    running mean, forth and back.

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
    """The middle of the longest strictly decreasing subsequence of the smoothed losses.

    The rate lies half the length of the subsequence before its end.

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
    """The left end of a window that slides down from the highest rates until the slopes at both of its ends agree.

    Args:
        rates: rising, > 0.
        losses: finite, one for each rate.

    Returns:
        The rate, or None where the slopes agree nowhere or at once.

    Source: fastai (`slide`); here slopes are those of the loss as a share of the curve's drop, so that the threshold
        doesn't depend on the unit of the loss.
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


def suggest(rule: str, rates: Sequence[float], losses: Sequence[float]) -> Suggestion:
    """Reads a rate off one curve over rising rates by a known rule, and refuses if the curve shows nothing.

    Args:
        rule: a name in `RULES`.
        rates: rising, > 0.
        losses: one for each rate, each seen before the update at that rate. What follows the first loss that is not
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
