"""A trend: does a noisy series still fall?"""

from __future__ import annotations

import math
from collections.abc import Sequence

OUTLIER_SHARE = 0.1
"""The share of largest values that the robust test leaves out, as dlib does."""


def probability_of_decrease(values: Sequence[float]) -> float:
    """The probability that the trend line of a noisy series falls.

    The values are modelled as `a + b * i + noise` with independent normal noise of unknown size. The least-squares
    slope is then normal around `b`, and the result is P(b < 0).

    Args:
        values: finite numbers, oldest first, shape (n,).

    Returns:
        A probability in [0, 1]; 0.5 for fewer than three values or a constant series, where nothing is known.

    Source: dlib, `running_gradient::probability_gradient_less_than(0)`.

    Example:
        >>> probability_of_decrease([3.0, 2.1, 0.9, 0.0]) > 0.99
        True
        >>> probability_of_decrease([1.0, 1.0, 1.0, 1.0])
        0.5
    """
    return _probability(range(len(values)), values)


def probability_of_decrease_robust(values: Sequence[float]) -> float:
    """The same as `probability_of_decrease`, without the largest tenth of the values; the others keep their places.

    So a single spike can neither hide that a series still falls nor make it look as if it fell after the spike.

    Example:
        >>> falling = [5.0 - 0.1 * i + 0.05 * (-1) ** i for i in range(40)]
        >>> falling[35] = 1e100
        >>> probability_of_decrease_robust(falling) > 0.99
        True
    """
    drop = int(len(values) * OUTLIER_SHARE)
    keep = sorted(sorted(range(len(values)), key=lambda i: values[i])[: len(values) - drop])
    return _probability(keep, [values[i] for i in keep])


def _probability(places: Sequence[int], values: Sequence[float]) -> float:
    n = len(values)
    if n < 3:
        return 0.5
    # centred and scaled, so that neither 1e100 nor a large common offset overflows or cancels
    middle_x, middle_y = math.fsum(places) / n, math.fsum(v / n for v in values)
    scale = max(abs(v - middle_y) for v in values)
    if scale == 0.0:
        return 0.5
    xs, ys = [x - middle_x for x in places], [(v - middle_y) / scale for v in values]
    sxx = math.fsum(x * x for x in xs)
    slope = math.fsum(x * y for x, y in zip(xs, ys, strict=True)) / sxx
    residual = math.fsum((y - slope * x) ** 2 for x, y in zip(xs, ys, strict=True))
    error = math.sqrt(residual / (n - 2) / sxx)
    if error == 0.0:
        return 0.5 if slope == 0.0 else float(slope < 0.0)
    return 0.5 * math.erfc(slope / error / math.sqrt(2.0))
