"""`Clock`: how many updates a run still makes, by the trainer's own counters."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from lightning_lr.run.length import updates_in_epochs


class Clock(NamedTuple):
    """What ends a run, as its limits and its data have it: set once an epoch, read at any update.

    Time passes here by batches and by `trainer.global_step`, not by real updates: also where an update was dropped,
    skipped by a gradient scaler, or made by a sweep's trial. So the end is where the trainer ends the run.

    Args:
        max_steps: of the run; -1: without.
        max_epochs: of the run; -1: without.
        epoch: in which it was set.
        updates: of that epoch; None: the dataloader has no length.
        batches: of one update.
        after: the updates of all epochs after that one; None: not known.
    """

    max_steps: int
    max_epochs: int
    epoch: int
    updates: int | None
    batches: int
    after: int | None

    @classmethod
    def of(cls, trainer: Any) -> Clock:
        """By what is known in the present epoch, from the start of its first batch on."""
        limits, epoch = limits_of(trainer), trainer.current_epoch
        # with a schedule of accumulation that is resumed within an epoch it is not what the schedule says
        batches = trainer.accumulate_grad_batches if trainer.lightning_module.automatic_optimization else 1
        updates = after = None
        if math.isfinite(trainer.num_training_batches):
            updates = math.ceil(trainer.num_training_batches / batches)
            if limits[1] != -1:
                after = round(updates_in_epochs(trainer, max(0, limits[1] - epoch - 1), "", first=epoch + 1))
        return cls(*limits, epoch, updates, batches, after)

    def left(self, trainer: Any) -> int | None:
        """The updates of each optimizer that are left, >= 1 and with the present one; None where nothing tells.

        To be asked within a batch. Under manual optimization one update per batch and optimizer is taken for granted.
        """
        ends = []
        if self.after is not None and self.updates is not None:
            of_epoch = self.updates if trainer.current_epoch == self.epoch else 0
            ends.append(self.after + of_epoch - trainer.fit_loop.batch_idx // self.batches)
        if self.max_steps != -1:
            ends.append(self.until(trainer, self.max_steps))
        return max(1, min(ends)) if ends else None

    def made(self, trainer: Any) -> int:
        """The updates of each optimizer that lie behind."""
        return trainer.global_step // max(1, len(trainer.optimizers))

    def until(self, trainer: Any, step: int) -> int:
        """The updates of each optimizer that are left before `trainer.global_step` is `step`."""
        # Lightning counts the steps of all optimizers together (PL#17958)
        return -((trainer.global_step - step) // max(1, len(trainer.optimizers)))


def limits_of(trainer: Any) -> tuple[int, int]:
    """The run's `max_steps` and `max_epochs`, -1 where there is none."""
    epochs = trainer.fit_loop.max_epochs
    return trainer.max_steps, -1 if epochs is None else epochs
