"""The occasions on which a finder sweeps in one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lightning_lr.policies.sweep import SECOND_STEPS
from lightning_lr.policies.sweep_schedule import SweepSchedule, SweepScheduleState
from lightning_lr.run.length import updates_in_run
from lightning_lr.sweeps.outlook import fits, needed, no_room, outlook
from lightning_lr.sweeps.sweep_plan import second_looks_at


class Occasions:
    """Says when a sweep is due: at the places that the user named, on request, and for a second opinion.

    A sweep that is broken off has not been: `take_back` makes it due again.

    Args:
        schedule: the places that the user named.
        comes_back: whether the finder comes back for second opinions.
        least_rest: the share of a sweep's length that must be left of the run after it.
        replay: whether its sweeps play batches again.
    """

    def __init__(self, schedule: SweepSchedule, *, comes_back: bool, least_rest: float, replay: bool) -> None:
        self.schedule, self._comes_back, self._least_rest, self._replay = schedule, comes_back, least_rest, replay
        self.state = SweepScheduleState()
        self.why = ""
        """Why the latest sweep was due, in words."""
        self.second_looks: list[int] | None = None
        """The real updates before which a second opinion is due; None: not planned yet."""
        self._before: tuple[SweepScheduleState, list[int] | None] = self.state, None
        self._without_room: frozenset[str] = frozenset()

    def request(self, reason: str) -> None:
        """Makes a sweep due at the next occasion."""
        self.state = replace(self.state, requested=reason)

    def plan(self, run: float | None) -> None:
        """Plans the second opinions of a run of so many updates, unless a resumed run has brought its plan."""
        if self.second_looks is None:
            self.second_looks = second_looks_at(run) if self._comes_back else []

    def look_ahead(self, trainer: Any, *, made: int, steps: int, shorter: str) -> list[str]:
        """Notes at the start of a run which places have no room for a sweep, and says why, in words.

        Args:
            trainer: at the start of training.
            made: the updates made so far.
            steps: the most updates of a sweep.
            shorter: how the user writes a finder with shorter sweeps.
        """
        length: dict[str, Any] = {"made": made, "steps": steps, "least_rest": self._least_rest}
        seen = outlook(trainer, self.schedule, self.state, **length, replay=self._replay, shorter=shorter)
        self._without_room = seen.without_room
        return seen.refusals

    def due(self, trainer: Any, *, update: int, steps: int, say: Callable[[str], None]) -> bool:
        """Whether a sweep is to begin with this batch.

        Args:
            trainer: at the start of a batch that begins an update.
            update: the real updates made so far.
            steps: the most updates of a sweep.
            say: takes the words for a sweep that was asked for, and has no room.
        """
        before = self.state
        self.state, self.why = self.schedule.step(before, update=update, epoch=trainer.current_epoch)
        if not self.why or trainer.fast_dev_run:
            return False
        self._before = before, self.second_looks
        if set(self.state.done) - set(before.done) - self._without_room:
            return True
        if before.requested is None:
            return False
        left, needs = updates_in_run(trainer, None), needed(trainer, steps, replay=self._replay)
        if left is None or fits(needs, left, self._least_rest):
            return True
        say(f"no sweep ({self.why}): {no_room(needs, left, self._least_rest)}")
        return False

    def take_second_look(self, trainer: Any, *, found: bool, sure: bool) -> bool:
        """Uses up a second opinion that is due; whether a sweep is to begin for it.

        Args:
            trainer: at the start of a batch that begins an update.
            found: whether a sweep has ended so far.
            sure: whether the latest one left no doubt.
        """
        assert self.second_looks
        self._before = self.state, self.second_looks
        # whoever was sure at first is asked once more, and not twice
        self.second_looks = self.second_looks[1:] if found and not sure else []
        self.why = "a second opinion"
        left, needs = updates_in_run(trainer, None), needed(trainer, SECOND_STEPS, replay=self._replay)
        return found and (left is None or fits(needs, left))

    def take_back(self) -> None:
        """Makes the latest sweep due again: it was broken off."""
        self.state, self.second_looks = self._before

    def state_dict(self, *, before_sweep: bool = False) -> dict[str, Any]:
        """Plain values; `before_sweep`: as they were before the sweep that is under way."""
        state, second_looks = self._before if before_sweep else (self.state, self.second_looks)
        return {"agenda": state.to_dict(), "again": second_looks}

    def load_state_dict(self, saved: dict[str, Any], sweep: dict[str, Any] | None) -> None:
        """Takes up what `state_dict` gave.

        Args:
            saved: of the finder; before the sweep, if one was under way.
            sweep: of the sweep that was under way, with its reason `why`.
        """
        # the release before had no second opinions
        self.state, self.second_looks = SweepScheduleState.from_dict(saved["agenda"]), saved.get("again")
        self._before = self.state, self.second_looks
        if sweep is not None:
            self.state, self.second_looks = SweepScheduleState.from_dict(sweep["agenda"]), sweep["again"]
            self.why = sweep["why"]
