"""The end of a run: by its limits, or because somebody has asked it to stop."""

from __future__ import annotations

from typing import Any

from lightning_lr.run.clock import Clock, limits_of
from lightning_lr.run.late_stop import LateStop


class RunEnd:
    """Determines how many updates are left of a run, by a clock that is set once an epoch.

    After `put_off_stops` a run that is asked to stop goes on for some more updates, see `LateStop`.
    """

    def __init__(self) -> None:
        self.clock: Clock | None = None
        self.current = False
        """Whether the clock was set in the present epoch."""
        self.late: LateStop | None = None
        self.stop_at: int | None = None
        """The value of `at` that a resumed run begins with."""

    @property
    def at(self) -> int | None:
        """The `trainer.global_step` at which a run that was asked to stop ends; None: nobody has asked."""
        return self.stop_at if self.late is None else self.late.at

    def other_limits(self, trainer: Any) -> bool:
        """Whether a resumed run has other limits than the one that was saved."""
        return self.clock is not None and (self.clock.max_steps, self.clock.max_epochs) != limits_of(trainer)

    def set_clock(self, trainer: Any) -> tuple[int | None, int | None]:
        """Sets the clock to the present epoch.

        Returns:
            The updates that are left by the clock as it was, and by the clock as it is now; None if that isn't known.
        """
        before = self.left(trainer)
        self.clock, self.current = Clock.of(trainer), True
        return before, self.left(trainer)

    def left(self, trainer: Any) -> int | None:
        """The updates of each optimizer that are left, the present one included; None if that isn't known."""
        if self.clock is None:
            return None
        left, stop = self.clock.left(trainer), self.at
        if stop is None:
            return left
        until = max(1, self.clock.until(trainer, stop))
        return until if left is None else min(left, until)

    def put_off_stops(self, trainer: Any) -> None:
        """From here to `release`, a stop that is asked for is put off."""
        self.late = LateStop(trainer, self.stop_at)

    def release(self) -> None:
        """Gives the trainer back what was borrowed of it; safe to call twice."""
        late, self.late = self.late, None
        if late is not None:
            self.stop_at = late.at
            late.release()

    def __getstate__(self) -> dict[str, Any]:
        # a late stop refers to its trainer
        return {**self.__dict__, "late": None}
