"""Refusals: combinations of callbacks and strategies with which no run can start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_lr.run.peer import Peer

REFUSED = ("DeepSpeedStrategy", "FSDPStrategy", "XLAStrategy", "SingleDeviceXLAStrategy", "XLAFSDPStrategy")


def refuse(trainer: Any, peers: Sequence[Peer]) -> None:
    """Checks that the run can start.

    Raises:
        ValueError: when two peers have the same name, when both `LRMonitor` and `LearningRateMonitor` are there, and
            for a strategy that owns the optimizer's step.
    """
    names = [peer.name for peer in peers]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ValueError(
                f"callbacks need different names, but {names.count(name)} are called {name!r}: "
                f"give one of them another, {peers[index].written(name='...')}"
            )
    kinds = {kind.__name__ for kind in type(trainer.strategy).__mro__}
    for refused in REFUSED:
        if refused in kinds:
            raise ValueError(
                f"lightning_lr can't change rates under {refused}, which steps or flattens the optimizer itself: "
                f"use DDPStrategy, or ModelParallelStrategy (FSDP2) for sharded models"
            )
    monitors = [peer for peer in peers if peer.monitors]
    if monitors and has_stock_monitor(trainer):
        raise ValueError(
            f"LRMonitor and LearningRateMonitor write the same tags: leave LearningRateMonitor out, "
            f"LRMonitor shows all that it shows (or {monitors[0].left_out})"
        )


def has_stock_monitor(trainer: Any) -> bool:
    """Whether Lightning's own `LearningRateMonitor` is among the trainer's callbacks."""
    return any(kind.__name__ == "LearningRateMonitor" for c in trainer.callbacks for kind in type(c).__mro__)
