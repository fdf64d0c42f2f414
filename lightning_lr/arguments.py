"""Arguments: checks whose errors name the bound, the value and the remedy."""

from __future__ import annotations

import math
import numbers
from typing import Any


def whole_number(name: str, value: Any, least: int, remedy: str = "") -> int:
    """The value as an int.

    Raises:
        ValueError: when it is not a whole number >= `least`; a bool or a string is not one.
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least:
        return int(value)
    raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}{remedy and ': ' + remedy}")


def real_number(name: str, value: Any, interval: str, remedy: str = "") -> float:
    """The value as a float.

    Args:
        name: the argument's name.
        value: the value that was given.
        interval: such as `(0, 1]` or `[0, inf)`; a round bracket excludes the bound.
        remedy: what to do instead, in words.

    Raises:
        ValueError: when it is not a finite number in the interval; a bool or a string is not one.

    Example:
        >>> real_number("factor", 1.5, "(0, 1)", "to keep the rate, leave PlateauDecay out")
        Traceback (most recent call last):
        ValueError: factor must be in (0, 1), got 1.5: to keep the rate, leave PlateauDecay out
    """
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value):
        number = float(value)
        above = low < number or (interval[0] == "[" and number == low)
        below = number < high or (interval[-1] == "]" and number == high)
        if above and below:
            return number
    raise ValueError(f"{name} must be in {interval}, got {value!r}{remedy and ': ' + remedy}")


def one_length(steps: Any, epochs: Any, fraction: Any, remedy: str) -> None:
    """Checks that a length is given in exactly one way. The bounds of `steps` are checked elsewhere.

    Raises:
        ValueError: when none or several are given, and for epochs or a fraction out of bounds.

    Example:
        >>> one_length(100, 1, None, "for no warm-up, leave Warmup out")
        Traceback (most recent call last):
        ValueError: give exactly one of steps, epochs and fraction, got steps=100, epochs=1
    """
    given = {"steps": steps, "epochs": epochs, "fraction": fraction}
    given = {key: value for key, value in given.items() if value is not None}
    if len(given) != 1:
        got = ", ".join(f"{key}={value!r}" for key, value in given.items()) or "none"
        raise ValueError(f"give exactly one of steps, epochs and fraction, got {got}")
    if epochs is not None:
        real_number("epochs", epochs, "(0, inf)", remedy)
    if fraction is not None:
        real_number("fraction", fraction, "(0, 1]", "it is a share of the whole run")
