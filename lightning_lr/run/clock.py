"""A clock: how many updates a run still makes, by the trainer's own counters."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from lightning_lr.run.length import updates_in_epochs


class Clock(NamedTuple):
    """When a run ends, by its limits and its data; set once per epoch, read at any update.

    Time is counted in batches and in `trainer.global_step`, not in real updates. So it passes too when an update is
    dropped, skipped by a gradient scaler, or made in a sweep, and the end is where the trainer ends the run.

    Args:
        max_steps: the run's limit; -1 for none.
        max_epochs: the run's limit; -1 for none.
        epoch: the epoch in which the clock was set.
        updates: the updates of that epoch; None if the dataloader has no length.
        batches: the batches of one update.
        after: the updates of all later epochs; None if that is not known.
    """

    max_steps: int
    max_epochs: int
    epoch: int
    updates: int | None
    batches: int
    after: int | None

    @classmethod
    def of(cls, trainer: Any) -> Clock:
        """Sets a clock by what is known in the current epoch; from the start of its first batch on."""
        limits, epoch = limits_of(trainer), trainer.current_epoch
        # after a resume within an epoch this is not what a schedule of accumulation says
        batches = trainer.accumulate_grad_batches if trainer.lightning_module.automatic_optimization else 1
        updates = after = None
        if math.isfinite(trainer.num_training_batches):
            updates = math.ceil(trainer.num_training_batches / batches)
            if limits[1] != -1:
                after = round(updates_in_epochs(trainer, max(0, limits[1] - epoch - 1), "", first=epoch + 1))
        return cls(*limits, epoch, updates, batches, after)

    def left(self, trainer: Any) -> int | None:
        """The updates of each optimizer that are left, the current one included, >= 1; None where that is not known.

        Call it within a batch. Manual optimization is taken to make one update per batch and optimizer.
        """
        ends = []
        if self.after is not None and self.updates is not None:
            of_epoch = self.updates if trainer.current_epoch == self.epoch else 0
            ends.append(self.after + of_epoch - trainer.fit_loop.batch_idx // self.batches)
        if self.max_steps != -1:
            ends.append(self.until(trainer, self.max_steps))
        return max(1, min(ends)) if ends else None

    def made(self, trainer: Any) -> int:
        """The updates that each optimizer has made."""
        return trainer.global_step // max(1, len(trainer.optimizers))

    def until(self, trainer: Any, step: int) -> int:
        """The updates of each optimizer that are left until `trainer.global_step` is `step`."""
        # Lightning counts the steps of all optimizers together (PL#17958)
        return -((trainer.global_step - step) // max(1, len(trainer.optimizers)))


def limits_of(trainer: Any) -> tuple[int, int]:
    """The run's `max_steps` and `max_epochs`; -1 for none."""
    epochs = trainer.fit_loop.max_epochs
    return trainer.max_steps, -1 if epochs is None else epochs
