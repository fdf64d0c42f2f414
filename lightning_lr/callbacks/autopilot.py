"""`autopilot`: all five callbacks with their defaults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_lr.callbacks.base import LRCallback
from lightning_lr.callbacks.divergence import DivergenceGuard
from lightning_lr.callbacks.finder import LRFinder
from lightning_lr.callbacks.monitor import LRMonitor
from lightning_lr.callbacks.plateau import PlateauDecay
from lightning_lr.callbacks.warmup import Warmup

WARMUP_FRACTION = 0.05
"""Of the run, after the sweep."""

KINDS: dict[str, Callable[..., LRCallback]] = {
    "finder": LRFinder,
    "warmup": Warmup,
    "plateau": PlateauDecay,
    "guard": DivergenceGuard,
    "lr_monitor": LRMonitor,
}


def autopilot(monitor: str = "val_loss", **overrides: Any) -> list[LRCallback]:
    """All five callbacks: find the rate, warm up, decay on a plateau, survive divergence, and show it all.

    Args:
        monitor: the metric that `PlateauDecay` watches.
        overrides: for `finder`, `warmup`, `plateau`, `guard` and `lr_monitor`: a dict of keyword arguments, a callback
            to take instead, or None (or False) to leave it out.

    Returns:
        The callbacks, for `Trainer(callbacks=...)`.

    Raises:
        ValueError: for an unknown name, and for what is none of the three.

    Example:
        >>> from lightning_lr import autopilot
        >>> [callback.name for callback in autopilot("val_loss", warmup={"steps": 100}, guard=None)]
        ['LRFinder', 'Warmup', 'PlateauDecay', 'LRMonitor']
    """
    defaults: dict[str, dict[str, Any]] = {
        "warmup": {"fraction": WARMUP_FRACTION},
        "plateau": {"monitor": monitor},
    }
    unknown = sorted(overrides.keys() - KINDS.keys())
    if unknown:
        raise ValueError(f"autopilot knows {', '.join(KINDS)}, got {', '.join(unknown)}")
    callbacks = []
    for key, kind in KINDS.items():
        given = overrides.get(key, {})
        if isinstance(given, LRCallback):
            callbacks.append(given)
        elif isinstance(given, dict):
            replaced = key == "warmup" and given.keys() & {"steps", "epochs", "fraction"}
            callbacks.append(kind(**{**({} if replaced else defaults.get(key, {})), **given}))
            callbacks[-1].option = key
        elif given not in (None, False):
            raise ValueError(
                f"{key} must be a dict of arguments, a callback, or None to leave it out, got {given!r}: "
                f"write {key}={{...}}"
            )
    return callbacks
