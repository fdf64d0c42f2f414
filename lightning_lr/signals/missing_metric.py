"""A missing metric: what `PlateauDecay` says when its metric is not logged, or has no mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lightning_lr.signals.metric_name import closest, looks_like_a_score, of_training, of_validation

ALIKE, SAME_BUT_FOR_A_TYPO = 0.6, 0.8
"""How similar two names are, as a share in [0, 1]: worth a question, and the same but for a typo."""


class Watcher(Protocol):
    """A callback that lowers the rate by a metric: its name, and how the user writes it."""

    name: str
    monitor: str
    mode: str | None
    option: str | None

    @property
    def left_out(self) -> str: ...


def without_mode(watcher: Watcher) -> str:
    """For a metric named like a score: nobody said whether higher is better."""
    return (
        f"{watcher.name} monitors {watcher.monitor!r}, which may be a score (higher is better), but has no mode: it makes no check "
        f"and changes no rate. Write {_call(watcher, watcher.monitor, 'max')}, or mode='min' if less is better"
    )


def without_validation(watcher: Watcher) -> str:
    """For a metric of validation, in a run without validation."""
    return (
        f"{watcher.name} monitors {watcher.monitor!r}, but this run has no validation: no rate is changed unless "
        f"training logs that name. Name what training logs, as in {_call(watcher, 'train_loss')}, or {watcher.left_out}"
    )


def after_validation(watcher: Watcher, validation: Sequence[str], training: Sequence[str]) -> str | None:
    """After the first validation, sanity check included; None where the metric may still come from training.

    Args:
        watcher: the callback, which has not met its metric yet.
        validation: the names that validation has logged.
        training: the names that training has logged so far.
    """
    certain = of_validation(watcher.monitor)
    if watcher.monitor in (*validation, *training) or (not certain and of_training(watcher.monitor)):
        return None
    close = closest(watcher.monitor, validation, ALIKE if certain else SAME_BUT_FOR_A_TYPO)
    if not certain and close is None:
        return None
    return (
        f"{watcher.name} monitors {watcher.monitor!r}, which validation has not logged; it logged "
        f"{_listed(validation)}. {_remedy(watcher, close)}. If it is logged later, all is well"
    )


def after_an_epoch(watcher: Watcher, logged: Sequence[str]) -> str:
    """For a metric that neither a whole epoch nor its validation has logged."""
    return (
        f"{watcher.name} monitors {watcher.monitor!r}, which was never logged; these were: {_listed(logged)}. "
        f"{_remedy(watcher, closest(watcher.monitor, logged, ALIKE))}"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "no metrics at all"


def _remedy(watcher: Watcher, close: str | None) -> str:
    if close is not None:
        return f"Did you mean {close!r}? Then write {_call(watcher, close, watcher.mode)}"
    return f"Log it with self.log({watcher.monitor!r}, ...), or name another metric, {_kind(watcher)}(monitor=...)"


def _call(watcher: Watcher, monitor: str, mode: str | None = None) -> str:
    """How the user writes the callback with another metric; `autopilot` takes metric and mode itself."""
    if mode is None and looks_like_a_score(monitor):
        mode = "max"
    return f"{_kind(watcher)}({monitor!r}{'' if mode is None else f', mode={mode!r}'})"


def _kind(watcher: Watcher) -> str:
    return "autopilot" if watcher.option is not None else type(watcher).__name__
