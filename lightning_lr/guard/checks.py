"""Checks: which values the guard's arguments may have."""

from __future__ import annotations

import math
from collections.abc import Callable
from os import PathLike
from typing import Any


def whole(value: Any) -> bool:
    """Whether it is a whole number >= 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


CHECKED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "limit": (
        lambda x: x is None or (isinstance(x, (int, float)) and not isinstance(x, bool) and 1.0 < x < math.inf),
        "a number > 1 (multiples of the largest gradient norm of late), or None for no limit",
    ),
    "trials": (lambda x: isinstance(x, bool), "True or False"),
    "backoff": (
        lambda x: isinstance(x, (int, float)) and 0.0 < x < 1.0,
        "in (0, 1): the ratio of the rate after a failure to the rate before",
    ),
    "max_rewinds": (whole, "a whole number >= 1"),
    "snapshot_every": (lambda x: x == "auto" or whole(x), "a whole number >= 1 or 'auto'"),
    "memory_limit": (
        lambda x: x in (None, "auto") or whole(x),
        "a whole number of bytes >= 1, 'auto', or None for no limit",
    ),
    "incidents_dir": (lambda x: x is None or isinstance(x, (str, PathLike)), "a folder's path, or None for none"),
    "save_snapshots": (lambda x: isinstance(x, bool), "True or False"),
    "loss_falls": (lambda x: x is None or isinstance(x, bool), "True, False, or None to go by the optimizers"),
    "lag": (lambda x: x in (0, 1) and not isinstance(x, bool), "0 or 1: the updates after which a verdict comes"),
    "on_give_up": (lambda x: x in ("raise", "stop"), "'raise' or 'stop'"),
}
"""By argument: whether a value is allowed, and which are, in words."""


def check(arguments: dict[str, Any]) -> None:
    """Refuses what is outside its bounds.

    Raises:
        ValueError: with the bound and the value.

    Example:
        >>> check({"lag": 2})
        Traceback (most recent call last):
        ValueError: lag must be 0 or 1: the updates after which a verdict comes, got 2
    """
    for name, value in arguments.items():
        if name in CHECKED and not CHECKED[name][0](value):
            raise ValueError(f"{name} must be {CHECKED[name][1]}, got {value!r}")
