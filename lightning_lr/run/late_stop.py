"""A late stop: a run that is asked to stop makes some more updates first."""

from __future__ import annotations

from typing import Any


class LateStop:
    """Keeps Lightning's own `min_steps` ahead of the run, and so has the last word on `trainer.should_stop`.

    No callback can take back a stop requested at the end of an epoch, where `EarlyStopping` runs after all others. But
    no stop takes effect before `min_steps`. The user's `min_steps` and `min_epochs` still hold.

    Args:
        trainer: within `fit`.
        at: the `trainer.global_step` at which a resumed run is to end; None if no stop was requested.
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
        """Whether the trainer would stop now by itself; call it at the start of a batch."""
        trainer, epochs = self._trainer, self._trainer.fit_loop.min_epochs
        enough = trainer.global_step >= (self._least or 0) and trainer.current_epoch >= (epochs or 0)
        return trainer.should_stop and enough

    def begin_batch(self, steps: int, *, falling: bool) -> bool:
        """At the start of a batch: takes over a requested stop.

        Until the stop takes effect `should_stop` is False again, since Lightning logs at every step while it is True.

        Args:
            steps: how many more steps of `trainer.global_step` the run then makes.
            falling: whether the run ends soon anyway; the request is then ignored.

        Returns:
            Whether a stop was taken over now.
        """
        was = self.at
        self.at = self.planned(steps, falling=falling)
        if self.asked:
            self._trainer.should_stop = False
        ahead = self._trainer.global_step + steps + max(1, len(self._trainer.optimizers))
        self._loop.min_steps = max(self._least or 0, ahead if self.at is None else self.at)
        return was is None and self.at is not None

    def planned(self, steps: int, *, falling: bool) -> int | None:
        """The `trainer.global_step` at which a run that was asked to stop ends; None if it was not asked.

        The arguments are those of `begin_batch`.
        """
        if self.at is None and not falling and self.asked:
            return self._trainer.global_step + steps
        return self.at

    def end_batch(self) -> None:
        """At the end of a batch: stops the run if it is time."""
        if self.at is not None and self._trainer.global_step >= self.at:
            self._trainer.should_stop = True

    def release(self) -> None:
        """Gives the trainer back its own `min_steps`."""
        self._loop.min_steps = self._least
