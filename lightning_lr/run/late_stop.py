"""`LateStop`: a run that is asked to stop goes on for some more updates."""

from __future__ import annotations

from typing import Any


class LateStop:
    """Keeps Lightning's own `min_steps` ahead of the run, and so has the last word on `trainer.should_stop`.

    No callback can take back a stop that is asked for at an epoch's end, where `EarlyStopping` comes after all others.
    But no stop counts before `min_steps`. The user's `min_steps` and `min_epochs` hold as ever.

    Args:
        trainer: within `fit`.
        at: the `trainer.global_step` at which a run that was resumed is to end; None: no stop was asked for.
    """

    def __init__(self, trainer: Any, at: int | None) -> None:
        self._trainer, self._loop = trainer, trainer.fit_loop.epoch_loop
        self._least = self._loop.min_steps
        self.at = at
        if at is not None:
            self._loop.min_steps = at
            self.end_batch()

    @property
    def asked(self) -> bool:
        """Whether the trainer would stop now by itself; to be asked at a batch's start."""
        trainer, epochs = self._trainer, self._trainer.fit_loop.min_epochs
        enough = trainer.global_step >= (self._least or 0) and trainer.current_epoch >= (epochs or 0)
        return trainer.should_stop and enough

    def begin_batch(self, steps: int, *, falling: bool) -> bool:
        """At the start of a batch: takes a stop over that was asked for.

        While the stop is late `should_stop` is False again: with it Lightning logs at every step.

        Args:
            steps: by `trainer.global_step`, after which the run ends then.
            falling: whether it ends soon anyway: then the stop is forgotten.

        Returns:
            Whether the stop has been taken over now.
        """
        was = self.at
        self.at = self.planned(steps, falling=falling)
        if self.asked:
            self._trainer.should_stop = False
        ahead = self._trainer.global_step + steps + max(1, len(self._trainer.optimizers))
        self._loop.min_steps = max(self._least or 0, ahead if self.at is None else self.at)
        return was is None and self.at is not None

    def planned(self, steps: int, *, falling: bool) -> int | None:
        """Where a run that was asked to stop ends, by `trainer.global_step`; None where it was not.

        The arguments are those of `begin_batch`.
        """
        if self.at is None and not falling and self.asked:
            return self._trainer.global_step + steps
        return self.at

    def end_batch(self) -> None:
        """At the end of a batch: the stop comes now, if it is time."""
        if self.at is not None and self._trainer.global_step >= self.at:
            self._trainer.should_stop = True

    def release(self) -> None:
        """Gives the trainer its own `min_steps` back."""
        self._loop.min_steps = self._least
