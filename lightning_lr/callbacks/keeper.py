"""Keeper: when the guard's copies are taken, and which of them is not proven yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_lr.generations import Generation, Generations
from lightning_lr.policies.copies import CopyPolicy
from lightning_lr.policies.divergence_state import Side


class Keeper:
    """Takes copies when they are due.

    Args:
        generations: the copies.
        interval: the most updates between two; None: by their size.
        short: called with the bytes of a copy when two are more than is allowed by now; gives the warning's words.
    """

    def __init__(self, generations: Generations, interval: int | None, short: Callable[[int, int], str]) -> None:
        self.generations, self.policy = generations, CopyPolicy(interval)
        self.since = self.tried = 0
        """The clock at the start or the last rewind, and at the last copy or the last one that found no room."""
        self.unproven = 0
        """Verdicts that are to come before it is known whether the weights of the newest copy were healthy."""
        self.unlike = False
        """Whether the ranks have yet to compare what they copied."""
        self._short, self._told = short, False

    def due(self, clock: int) -> bool:
        """Whether a copy is to be taken, if the weights are fit for it."""
        newest = self.generations.newest
        last = max(newest.clock, self.tried)
        return self.policy.due(clock=clock, last=last, since=clock - self.since, size=newest.size)

    def take(self, clock: int, step: int, lost: int, *, promote: bool, unproven: int) -> bool:
        """Takes one, if there is room.

        Args:
            clock: updates judged so far.
            step: the present place on the loggers' axis.
            lost: updates lost so far.
            promote: whether the one before becomes the best.
            unproven: verdicts that are to come before it is known whether the weights are healthy.
        """
        self.tried = clock
        if not self.generations.take(clock, step, lost, promote=promote):
            self.tell_short(clock)
            return False
        self.unproven, self.unlike = unproven, self.generations.shares.divides
        return True

    def restore(self, to: Side, clock: int) -> Generation:
        """Gives a copy back before the update after this clock."""
        self.since = self.tried = clock
        self.unproven, self.unlike = 0, False
        return self.generations.restore(to, clock)

    def tell_short(self, clock: int) -> None:
        """Two copies are more than is allowed by now."""
        if not self._told:
            self._told = True
            rank_zero_warn(self._short(self.generations.measure(), clock - self.generations.newest.clock))

    def state_dict(self) -> dict[str, Any]:
        """The clocks; not the copies."""
        return {"since": self.since, "tried": self.tried, "unproven": self.unproven}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self.since, self.tried, self.unproven = saved["since"], saved["tried"], saved["unproven"]
