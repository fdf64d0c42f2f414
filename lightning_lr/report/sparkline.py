"""A sparkline: a series as one line of characters."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

BLOCKS, PLAIN = "▁▂▃▄▅▆▇█", "_.-=+*#@"
GONE, GONE_PLAIN = "\N{MULTIPLICATION SIGN}", "x"
"""Where a value is not finite."""


def sparkline(
    steps: NDArray[np.int64],
    values: NDArray[np.float64],
    width: int,
    *,
    begin: int,
    end: int,
    log: bool = False,
    lasting: bool = False,
    plain: bool = False,
) -> str:
    """Draws a series from the step `begin` to the step `end`.

    Args:
        steps: int64, shape (n,), rising.
        values: shape (n,).
        width: the width in characters.
        begin: the step at the left edge.
        end: the step at the right edge.
        log: whether the heights are logarithmic; a value of 0 is drawn at the bottom.
        lasting: whether a value lasts until the next; otherwise each character is the median of its points. Heights end
            at the 2nd and 98th percentile, so that a spike doesn't flatten the rest; of lasting values only the lowest
            3% are cut.
        plain: whether to use ASCII only.

    Example:
        >>> steps = np.arange(8)
        >>> sparkline(steps, steps / 8.0, 8, begin=0, end=7)
        '▁▂▃▄▅▆▇█'
    """
    if not len(steps):
        return ""
    edges = np.linspace(begin, max(end, begin + 1), width + 1)
    heights = np.full(width, np.nan)
    gone = np.zeros(width, np.bool_)
    for i in range(width):
        low = int(np.searchsorted(steps, edges[i], "left"))
        high = int(np.searchsorted(steps, edges[i + 1], "right" if i == width - 1 else "left"))
        own = values[low:high]
        if lasting:
            own = values[high - 1 : high] if high else own
        finite = own[np.isfinite(own)]
        gone[i] = len(own) > 0 and not len(finite)
        heights[i] = np.median(finite) if len(finite) else math.nan
    if log:
        heights = np.log(np.where(heights > 0, heights, np.nan), where=~np.isnan(heights), out=np.full(width, np.nan))
    blocks, no_number = (PLAIN, GONE_PLAIN) if plain else (BLOCKS, GONE)
    known = heights[~np.isnan(heights)]
    low, high = (np.quantile(known, (0.03, 1) if lasting else (0.02, 0.98))) if len(known) else (0.0, 0.0)
    line = ""
    for i, height in enumerate(heights.tolist()):
        if math.isnan(height):
            # a rate of 0 has no logarithm
            line += no_number if gone[i] else blocks[0] if log and steps[0] < edges[i + 1] else " "
        elif high <= low:
            line += blocks[3]
        else:
            line += blocks[min(7, max(0, int(8 * (height - low) / (high - low))))]
    return line
