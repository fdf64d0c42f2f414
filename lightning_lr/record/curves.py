"""Curves: scalars to every logger, exact at each change, and as dense as suits its kind."""

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
"""TensorBoard smooths by points, whatever lies between them: `0.6 x the smoothed one before + 0.4 x this one`. So many
more points after a change leave 1% of the old value. Without them that would take as many logging steps, with hundreds
of updates at a rate that never was."""


class Curves:
    """Writes points of scalars, on rank zero.

    A *lasting* scalar has a value at any time: a rate, a factor, a momentum. Every change of it is a point, at the very
    step, with one for the old value at the step before, so that a curve shows a step and no slope. TensorBoard gets a
    few more after it, for its smoothing. Loggers that are no files here, but may be a request for each call, get the
    points of a drift only at the trainer's logging steps and at its end, and never one for an earlier step.

    Args:
        trainer: whose loggers are written to.
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
        """Is there anybody to write to?"""
        return self._trainer.is_global_zero and bool(self._trainer.loggers)

    @property
    def busy(self) -> bool:
        """Is there anything left to write?"""
        return bool(self._new or self._late or self._tails)

    def shown(self, tag: str) -> float | None:
        """The last value."""
        return self._shown[tag][1] if tag in self._shown else None

    def holds(self, tag: str) -> bool:
        """Is there a point of the present step already?"""
        return tag in self._new

    def add(self, step: int, tag: str, value: float, before: float | None = None, *, lasting: bool) -> None:
        """A point of the present step; `before`: the value that a lasting one had until then."""
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
        """At the end of a step: with `dense` every lasting scalar gets a point."""
        for tag in self._lasting if dense else ():
            if tag not in self._new:
                value = self._shown[tag][1]
                self._new[tag], self._shown[tag] = value, (step, value)

    def write(self, step: int, text: str = "", *, logs: bool = False, ends: bool = False) -> None:
        """Writes the points of a step.

        Args:
            step: on the loggers' axis.
            text: words for the CSV file's row.
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
        """The last points: of `last`, of all factors, and those held back; as far as they are not there yet."""
        last = {**last, **{tag: self._shown[tag][1] for tag in self._lasting if tag.startswith(FACTOR)}}
        new = {tag: value for tag, value in last.items() if self._shown.get(tag, (None,))[0] != step}
        late, self._late = self._late, {}
        self._send(step, new, {**late, **new}, {}, "")

    def _runs(self, tag: str) -> bool:
        drift = self._drifts.get(tag)
        return drift is not None and drift.running and tag in self._lasting

    def _old(self, step: int, tag: str, value: float) -> None:
        for logger in self._trainer.loggers if self.writes else ():
            # others drop, or refuse, a step below one that they already have
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
                # of Lightning's loggers only the CSV file takes words among the numbers
                row |= {EVENTS: text} if text else {}
            else:
                row, at = remote, max(step, self._furthest)
            if row:
                logger.log_metrics(row, step=at)
        if remote:
            self._furthest = max(step, self._furthest)


def is_tensorboard(logger: Any) -> bool:
    """Does it write scalars as TensorBoard's `SummaryWriter` does?"""
    return hasattr(getattr(logger, "experiment", None), "add_scalar")


def is_csv(logger: Any) -> bool:
    """Is it one of Lightning's CSV files (of either name of Lightning)?"""
    return any(kind.__name__ == "CSVLogger" for kind in type(logger).__mro__)
