"""Missing: what `PlateauDecay` says where its metric, or the mode of it, isn't there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_lr.metric_name import closest, looks_like_a_score, of_training, of_validation

if TYPE_CHECKING:
    from lightning_lr.callbacks.plateau import PlateauDecay

ALIKE, SAME_BUT_FOR_A_SLIP = 0.6, 0.8
"""How much two names have in common, as a share of both, that are worth a question, and that are hardly two names."""


def without_mode(plateau: PlateauDecay) -> str:
    """For a metric that is called like a score: nobody said whether more of it is better."""
    return (
        f"{plateau.name} monitors {plateau.monitor!r}, of which more may be better, and has no mode: it makes no check "
        f"and changes no rate. Write {_call(plateau, plateau.monitor, 'max')}, or mode='min' if less is better"
    )


def without_validation(plateau: PlateauDecay) -> str:
    """For a metric of validation, in a run that has none."""
    return (
        f"{plateau.name} monitors {plateau.monitor!r}, but this run has no validation: no rate is changed unless "
        f"training logs that name. Name what training logs, as in {_call(plateau, 'train_loss')}, or {plateau.left_out}"
    )


def after_validation(plateau: PlateauDecay, validation: Sequence[str], training: Sequence[str]) -> str | None:
    """After the first validation, be it the sanity check; None where the metric may well come from training.

    Args:
        plateau: that has not met its metric yet.
        validation: the names that validation has logged.
        training: those that training has logged so far.
    """
    certain = of_validation(plateau.monitor)
    if plateau.monitor in (*validation, *training) or (not certain and of_training(plateau.monitor)):
        return None
    close = closest(plateau.monitor, validation, ALIKE if certain else SAME_BUT_FOR_A_SLIP)
    if not certain and close is None:
        return None
    return (
        f"{plateau.name} monitors {plateau.monitor!r}, which validation has not logged; it logged "
        f"{_listed(validation)}. {_remedy(plateau, close)}. If it is logged later, all is well"
    )


def after_an_epoch(plateau: PlateauDecay, logged: Sequence[str]) -> str:
    """For a metric that a whole epoch and its validation have not logged."""
    return (
        f"{plateau.name} monitors {plateau.monitor!r}, which nobody has logged; logged were: {_listed(logged)}. "
        f"{_remedy(plateau, closest(plateau.monitor, logged, ALIKE))}"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "no metrics at all"


def _remedy(plateau: PlateauDecay, close: str | None) -> str:
    if close is not None:
        return f"Did you mean {close!r}? Then write {_call(plateau, close, plateau.mode)}"
    return f"Log it with self.log({plateau.monitor!r}, ...), or name another metric, {_kind(plateau)}(monitor=...)"


def _call(plateau: PlateauDecay, monitor: str, mode: str | None = None) -> str:
    """How the user writes it with another metric: `autopilot` takes metric and mode itself."""
    if mode is None and looks_like_a_score(monitor):
        mode = "max"
    return f"{_kind(plateau)}({monitor!r}{'' if mode is None else f', mode={mode!r}'})"


def _kind(plateau: PlateauDecay) -> str:
    return "autopilot" if plateau.option is not None else type(plateau).__name__
