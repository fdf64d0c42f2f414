"""UnjudgedUpdate: one update whose numbers were measured, and on which there is no verdict yet."""

from __future__ import annotations

import math
from typing import NamedTuple

from lightning_lr.policies.verdict import Side, Signals
from lightning_lr.signals.measure import Measured, Pending
from lightning_lr.signals.pulse import Shift


class UnjudgedUpdate(NamedTuple):
    """One update that is measured but not judged.

    Args:
        pending: its numbers.
        rate: as in `Signals`.
        side: as in `Signals`.
        kept: how often buffers had been kept then.
        asked: what the further numbers are that were summed over the ranks.
        signals: the numbers where they are known already (from a checkpoint).
        shift: what the update before has done to the weights; None where that is not known.
    """

    pending: Pending
    rate: float
    side: Side = "present"
    kept: int = 0
    asked: tuple[str, ...] = ()
    signals: Signals | None = None
    shift: Shift | None = None


def finish(update: UnjudgedUpdate) -> tuple[Measured, Signals]:
    """The numbers of an update, once they are on the host; a loss of 1 if there was none."""
    if update.signals is not None:
        return Measured(update.signals.loss, update.signals.grad_norm, (), None), update.signals
    measured, size = update.pending.read(), None
    if "number" in update.asked:
        more = dict(zip(update.asked, measured.more, strict=True))
        size = math.sqrt(max(more["square"], 0.0) / more["number"]) if more["number"] else None
    loss = 1.0 if measured.loss is None else measured.loss
    return measured, Signals(loss, measured.grad_norm, update.rate, update.side, size=size)


def finite(signals: Signals) -> bool:
    """Whether the loss and the gradient norm are finite."""
    return math.isfinite(signals.loss) and math.isfinite(signals.grad_norm)


def restored(signals: Signals, kept: int) -> UnjudgedUpdate:
    """An update from a checkpoint, which has only its numbers."""
    return UnjudgedUpdate(
        Pending([], lambda _: Measured(None, 0.0, (), None)), signals.rate, signals.side, kept, (), signals
    )
