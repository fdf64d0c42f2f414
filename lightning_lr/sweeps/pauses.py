"""The pauses of a sweep: updates in which the run's own batches count."""

from __future__ import annotations

from typing import Any

BETWEEN_PAUSES = 3
"""At least this many updates that don't count lie between two pauses: of shorter epochs not every one has a pause."""


class Pauses:
    """Says which batches of a sweep count for what the run logs, and when the sweep must wait for one.

    A batch counts if its forward pass ran at the healthy weights. An epoch whose first batch would not count begins
    with a pause: the sweep waits for one update, whose batches count.

    Args:
        first: whether the sweep begins with a pause.
        saved: what `state_dict` gave.
    """

    def __init__(self, *, first: bool, saved: dict[str, Any] | None = None) -> None:
        # the last epoch in which a batch has counted: after a resume its start is not always reported
        self._counted, self._since = -1, BETWEEN_PAUSES
        self.pausing = self._amid = self._counts = False
        self._next = first
        """Whether the next window of accumulation is a pause."""
        if saved is not None:
            self._counted, self._since = saved["counted"], saved["since"]
            self.pausing, self._next = saved["pausing"], saved["pauses"]

    def state_dict(self) -> dict[str, Any]:
        """Between two batches: plain numbers."""
        return {"counted": self._counted, "since": self._since, "pausing": self.pausing, "pauses": self._next}

    def due(self, epoch: int) -> bool:
        """Whether an update of this epoch that begins now must count, because none of the epoch has yet."""
        due = self._next or (self._counted != epoch and self._since >= BETWEEN_PAUSES)
        return due and not self._amid

    def begin_batch(self, epoch: int, *, healthy: bool, window_begins: bool) -> bool:
        """Begins a pause if one is due.

        Args:
            epoch: the present epoch.
            healthy: whether the batch's forward pass is going to run at the healthy weights, in a sweep's update.
            window_begins: whether the batch is the first of an update.

        Returns:
            Whether the batch counts.
        """
        if window_begins and self.due(epoch):
            self.pausing, self._next = self._next or not healthy, False
        self._counts = healthy or self.pausing
        return self._counts

    def end_batch(self, epoch: int, *, window_over: bool, update_over: bool) -> bool:
        """Ends a pause if its update is over.

        Args:
            epoch: the present epoch.
            window_over: whether the batch was the last of a window of accumulation.
            update_over: whether it was the last of an update: under manual optimization only its author knows.

        Returns:
            Whether a pause has ended.
        """
        if self._counts:
            self._counts, self._counted, self._since = False, epoch, 0
        elif window_over:
            self._since += 1
        self._amid = not update_over
        ended = self.pausing and update_over
        self.pausing = self.pausing and not update_over
        return ended

    def cut(self, *, update_over: bool) -> None:
        """At the end of an epoch, which may have cut a batch short."""
        self._amid = self._amid and not update_over

    @property
    def update_over(self) -> bool:
        """Whether no update is under way."""
        return not self._amid

    def wait_for(self, epoch: int, *, rest: bool) -> bool:
        """Whether the next batch has to be one of the run's own, because it counts; then a pause begins with it.

        Args:
            epoch: the next batch's.
            rest: whether it begins a window that is shorter than the others.
        """
        if self.pausing or self.due(epoch) or rest:
            self._next = not self.pausing
            return True
        return False
