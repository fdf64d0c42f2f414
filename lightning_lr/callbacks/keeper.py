"""Keeper: when the guard's copies are taken, and what they may cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_lr.generations import Generation, Generations
from lightning_lr.policies.copies import CopyPolicy
from lightning_lr.policies.divergence_state import Side

LEAST_INTERVAL = 10
"""Updates between two copies in a run whose steps are long against a copy."""

MOST_INTERVAL = 500
TIMED_UPDATES = 20
"""After so many updates `snapshot_every="auto"` decides."""

COST_SHARE = 0.01
"""Of the training time, for copies."""


class Keeper:
    """Takes copies when they are due.

    Args:
        generations: the copies.
        interval: the most updates between two; None: as often as costs at most 1% of the training time.
        short: called with the bytes of a copy when two are more than is allowed by now; gives the warning's words.
    """

    def __init__(self, generations: Generations, interval: int | None, short: Callable[[int, int], str]) -> None:
        self.generations, self.policy = generations, CopyPolicy()
        self.interval = LEAST_INTERVAL if interval is None else interval
        self.auto = interval is None
        self.since = self.tried = 0
        """The clock at the start or the last rewind, and at the last copy or the last one that found no room."""
        self._decided, self._timed = interval is not None, False
        self._short, self._told = short, False
        self._copy_seconds, self._step_seconds, self._last_time = 0.0, 0.0, time.perf_counter()

    def timing(self, clock: int) -> list[float]:
        """What is to be summed over the ranks with an update's numbers, so that all have one interval; else nothing."""
        if self._decided:
            return []
        now = time.perf_counter()
        if clock:
            self._step_seconds += now - self._last_time
        self._last_time = now
        if self._timed or clock < TIMED_UPDATES:
            return []
        self._timed = True
        share = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        steps = self._copy_seconds / max(self._step_seconds / TIMED_UPDATES, 1e-9) / COST_SHARE
        return [steps / share]

    def decide(self, steps: float) -> None:
        """Takes up the sum of what `timing` gave."""
        self.interval, self._decided = min(max(math.ceil(steps), LEAST_INTERVAL), MOST_INTERVAL), True

    def due(self, clock: int) -> bool:
        """Whether a copy is to be taken, if the weights are fit for it."""
        last = max(self.generations.newest.clock, self.tried)
        return self.policy.due(clock=clock, last=last, since=clock - self.since, interval=self.interval)

    def take(self, clock: int, step: int, lost: int, *, promote: bool) -> bool:
        """Takes one, if there is room."""
        began = self._time()
        self.tried = clock
        if not self.generations.take(clock, step, lost, promote=promote):
            self.tell_short(clock)
            return False
        # the first copies make their memory: only the latest one's time counts
        self._copy_seconds = self._time() - began
        return True

    def restore(self, to: Side, clock: int) -> Generation:
        """Gives a copy back before the update after this clock."""
        self.since = self.tried = clock
        return self.generations.restore(to, clock)

    def tell_short(self, clock: int) -> None:
        """Two copies are more than is allowed by now."""
        if not self._told:
            self._told = True
            rank_zero_warn(self._short(self.generations.measure(), clock - self.generations.newest.clock))

    def state_dict(self) -> dict[str, Any]:
        """The clocks; not the copies."""
        return {
            "interval": self.interval,
            "since": self.since,
            "tried": self.tried,
            "decided": self._decided or self._timed,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave; an interval that the user has set holds."""
        self.since, self.tried = saved["since"], saved["tried"]
        if self.auto:
            self.interval, self._decided = saved["interval"], saved["decided"]

    def _time(self) -> float:
        """Seconds; while the interval is still undecided, of an accelerator too."""
        if not self._decided and torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()
