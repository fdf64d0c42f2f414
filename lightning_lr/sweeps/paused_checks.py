"""The checks that are paused during a sweep, so that nothing is concluded from its validations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_lr.internals import DEFERRED, SKIPS, is_kind

RESTING = "not in a sweep"
"""The `interval` of a `ReduceLROnPlateau` that is paused: Lightning steps only those of `step` and `epoch`."""


class PausedChecks:
    """Pauses the user's checks of validation metrics until `release`.

    During a sweep every validation sees the same weights: a metric that stands still is no plateau, and no best model.
    So `EarlyStopping` makes no check, a `ModelCheckpoint` that monitors something saves nothing, and the user's
    `ReduceLROnPlateau` schedulers are not stepped. Nothing of this gets into a checkpoint.

    Args:
        trainer: whose callbacks and schedulers.
    """

    def __init__(self, trainer: Any) -> None:
        self._returns: list[Callable[[], None]] = []
        for callback in trainer.callbacks:
            for kind in (kind for kind in SKIPS if is_kind(callback, kind)):
                if getattr(callback, "monitor", None) is not None:
                    self._lend(callback, SKIPS[kind], skip)
                    if hasattr(callback, DEFERRED):
                        # a save that falls due during the sweep is not made up for at the first validation after it
                        self._lend(callback, DEFERRED, getattr(callback, DEFERRED))
        for config in trainer.lr_scheduler_configs:
            if config.reduce_on_plateau:
                self._lend(config, "interval", RESTING)

    def release(self) -> None:
        """Puts everything back as it was found; safe to call twice."""
        while self._returns:
            self._returns.pop()()

    def _lend(self, owner: Any, name: str, value: Any) -> None:
        own = vars(owner)
        if name in own:
            before = own[name]
            self._returns.append(lambda: setattr(owner, name, before))
        else:
            self._returns.append(lambda: own.pop(name, None))
        setattr(owner, name, value)


def skip(trainer: Any) -> bool:
    """Stands in for a method that says whether a check is skipped."""
    return True
