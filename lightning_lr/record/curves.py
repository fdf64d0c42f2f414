"""Curves: scalars for every logger, exact at each change, and as dense as suits the logger."""

from __future__ import annotations

from typing import Any

from lightning_lr.record.drift import Drift
from lightning_lr.record.series import Series

EVENTS = "lr-events"
FACTOR = "lr-factor/"
INCIDENT = "lr-incident/"
FINDER = "lr-finder/"
UPDATE = "lr-update/"

TAIL = 8
"""Further points after a change. TensorBoard smooths by points, however far apart they are: `0.6 x the smoothed value
before + 0.4 x this one`. This many points leave 1% of the old value. Without them that takes as many logging steps, and
the curve shows a rate that never was for hundreds of updates."""


class Curves:
    """Writes points of scalars, on rank zero.

    A *lasting* scalar has a value at any time: a rate, a factor, a momentum. Every change of it is a point at its own
    step, with a point for the old value at the step before, so that a curve shows a jump and not a slope. TensorBoard
    gets a few more points after a change, for its smoothing. Remote loggers, where each call may be a request, get the
    points of a drift only at the trainer's logging steps and at the end of the drift, and never a point for an earlier
    step.

    Args:
        trainer: its loggers are written to.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._new: dict[str, float] = {}
        self._shown: dict[str, tuple[int, float]] = {}
        self._lasting: dict[str, None] = {}
        self._drifts: dict[str, Drift] = {}
        self._late: dict[str, float] = {}
        self._tails: dict[str, int] = {}
        self._tailed: dict[str, int] = {}
        self._furthest = 0
        self.series: dict[str, Series] = {}
        """All points, in bounded memory, on every rank."""

    @property
    def writes(self) -> bool:
        """Whether there is a logger to write to."""
        return self._trainer.is_global_zero and bool(self._trainer.loggers)

    @property
    def busy(self) -> bool:
        """Whether there is anything left to write."""
        return bool(self._new or self._late or self._tails)

    def shown(self, tag: str) -> float | None:
        """The last value; None if there is none."""
        return self._shown[tag][1] if tag in self._shown else None

    def holds(self, tag: str) -> bool:
        """Whether the current step has a point already."""
        return tag in self._new

    def add(self, step: int, tag: str, value: float, before: float | None = None, *, lasting: bool) -> None:
        """Adds a point at the current step; `before` is the value that a lasting scalar had until then."""
        shown = self._shown.get(tag)
        if lasting:
            self._lasting[tag] = None
        if before is not None and lasting:
            if step > 0 and (shown is None or shown[0] < step - 1):
                self._old(step - 1, tag, before)
            if before != value:
                self._tails[tag] = TAIL + 1
                drift = self._drifts.get(tag)
                if drift is None or not drift.takes(before, value, at=step, step=step):
                    self._drifts[tag] = Drift.begin(before, value, at=step, step=step)
        self._new[tag] = value
        self._shown[tag] = (step, value)
        self.series.setdefault(tag, Series()).add(step, value)

    def rest(self, step: int, *, dense: bool) -> None:
        """At the end of a step: with `dense`, gives every lasting scalar a point."""
        for tag in self._lasting if dense else ():
            if tag not in self._new:
                value = self._shown[tag][1]
                self._new[tag], self._shown[tag] = value, (step, value)

    def write(self, step: int, text: str = "", *, logs: bool = False, ends: bool = False) -> None:
        """Writes the points of a step.

        Args:
            step: on the loggers' axis.
            text: text for the CSV file's row.
            logs: whether the trainer logs its own metrics at this step.
            ends: whether the step's update has been made.
        """
        new, self._new = self._new, {}
        remote = {tag: value for tag, value in new.items() if logs or not self._runs(tag)}
        self._late.update((tag, value) for tag, value in new.items() if tag not in remote)
        for tag, value in list(self._late.items()):
            if tag in remote or logs or (ends and self._drifts[tag].over(step)):
                del self._late[tag]
                remote.setdefault(tag, value)
        tail = self._tail(step, new) if ends else {}
        self._send(step, new, remote, tail, text)

    def close(self, step: int, last: dict[str, float]) -> None:
        """Writes the last points: those of `last`, of all factors, and those held back, unless they were written."""
        last = {**last, **{tag: self._shown[tag][1] for tag in self._lasting if tag.startswith(FACTOR)}}
        new = {tag: value for tag, value in last.items() if self._shown.get(tag, (None,))[0] != step}
        late, self._late = self._late, {}
        self._send(step, new, {**late, **new}, {}, "")

    def _runs(self, tag: str) -> bool:
        drift = self._drifts.get(tag)
        return drift is not None and drift.running and tag in self._lasting

    def _old(self, step: int, tag: str, value: float) -> None:
        for logger in self._trainer.loggers if self.writes else ():
            # other loggers drop or refuse a step below one that they already have
            if is_csv(logger) or (is_tensorboard(logger) and self._tailed.get(tag) != step):
                logger.log_metrics({tag: value}, step=step)

    def _tail(self, step: int, new: dict[str, float]) -> dict[str, float]:
        tail = {}
        for tag, left in self._tails.items():
            if tag not in new:
                tail[tag] = self._shown[tag][1]
                self._tailed[tag] = step
            self._tails[tag] = left - 1
        self._tails = {tag: left for tag, left in self._tails.items() if left}
        return tail

    def _send(
        self, step: int, new: dict[str, float], remote: dict[str, float], tail: dict[str, float], text: str
    ) -> None:
        for logger in self._trainer.loggers if self.writes else ():
            at, row = step, dict[str, Any](new)
            if is_tensorboard(logger):
                row = {tag: value for tag, value in row.items() if self._tailed.get(tag) != step} | tail
            elif is_csv(logger):
                # of Lightning's loggers only the CSV file takes text among the numbers
                row |= {EVENTS: text} if text else {}
            else:
                row, at = remote, max(step, self._furthest)
            if row:
                logger.log_metrics(row, step=at)
        if remote:
            self._furthest = max(step, self._furthest)


def is_tensorboard(logger: Any) -> bool:
    """Whether the logger writes scalars as TensorBoard's `SummaryWriter` does."""
    return hasattr(getattr(logger, "experiment", None), "add_scalar")


def is_csv(logger: Any) -> bool:
    """Whether the logger is Lightning's `CSVLogger`, in either namespace."""
    return any(kind.__name__ == "CSVLogger" for kind in type(logger).__mro__)
