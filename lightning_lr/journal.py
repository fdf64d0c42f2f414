"""The journal: every change of a rate, and every incident, to all loggers of the trainer."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from lightning_lr.change import SCHEDULER, Part, RateChange
from lightning_lr.ledger import Ledger
from lightning_lr.names import GroupName

EVENTS = "lr-events"
FACTOR = "lr-factor/"
DRIFT = 3
"""After this many changes of one rate by one source in a row, the text says so once, and once more when it ends."""

DRIFT_GAP = 16
"""Changes are in a row when they come at every update and none is twice as large as the one before (as a ratio), or
when they are small and at most so many updates apart."""

SMALL = 0.1
"""A small change, as a ratio to the value before."""

STORY_LINES = 1000
CHANGES_KEPT = 10_000


@dataclass
class Drift:
    """One source that changes one rate at every update: a warm-up, a schedule by step."""

    source: str
    start: int
    first: float
    last: float
    update: int
    step: int
    size: float
    length: int = 1
    gap: int = 1


class Journal:
    """Collects within a batch, writes at its end, on rank zero only, on the loggers' own axis.

    Scalars: the effective rate under Lightning's tag names, and `lr-factor/<callback>` (for a group whose factor
    differs from the first group's, `lr-factor/<callback>/<group>`). Before an isolated change the old value is written
    for the step before, so that a curve shows a step and no slope. Text: `lr-events`, one entry for each step that has
    something to say.

    Args:
        trainer: whose loggers are written to.
        names: gives the names of the param group at (optimizer, group).
        sources: of the factors, which all have a curve.
        monitoring: whether the text has the scheduler's own changes and the first rates too, and the scalars the last
            rates (`LRMonitor`).
        show_rates: whether the rates themselves are written (somebody else may already write their tags).
    """

    def __init__(
        self,
        trainer: Any,
        names: Callable[[tuple[int, int]], GroupName],
        sources: Iterable[str],
        *,
        monitoring: bool,
        show_rates: bool,
    ) -> None:
        self._trainer = trainer
        self._names = names
        self.monitoring = monitoring
        self._show_rates = show_rates
        self.story: deque[str] = deque(maxlen=STORY_LINES)
        self.changes: deque[RateChange] = deque(maxlen=CHANGES_KEPT)
        self._drifts: dict[tuple[int, int, str], Drift] = {}
        self._sources = list(sources)
        self._begun: set[tuple[int, int]] = set()
        self._moved: dict[tuple[str, tuple[int, int]], float | None] = {}
        self._lines: list[str] = []
        self._scalars: dict[str, float] = {}
        self._shown: dict[str, tuple[int, float]] = {}
        self._at = 0
        self._closed = False
        self._last_step: int | None = None

    @property
    def step(self) -> int:
        """The present place on the loggers' axis."""
        return self._trainer.fit_loop.epoch_loop._batches_that_stepped

    # what is told ----------------------------------------------------------------------------------------------

    def updated(self) -> None:
        """A real update was made in this batch."""
        self._last_step = self.step

    def rate(
        self, update: int, names: GroupName, place: tuple[int, int], old: float | None, new: float, parts: list[Part]
    ) -> None:
        """A group made its `update`-th update at another rate, or with other factors; see `Listener.rate_used`."""
        for part in parts:
            if part.source != SCHEDULER:
                self._moved[part.source, place] = None if old is None else part.old
        loud = [part for part in parts if old is not None and self._drift(update, place, part)]
        first = place not in self._begun
        if first:
            # every curve runs from the first update on, also while nothing changes
            self._begun.add(place)
            self._moved = {(source, place): None for source in self._sources} | self._moved
        if self._show_rates and (first or old != new):
            self._scalar(names.tag, new, before=old)
        if old == new:
            return
        if old is None:
            if self.monitoring:
                shares = "".join(f", {part.source} {part.new:.6g}" for part in parts)
                self.say(f"{_where(names)}: first update at {new:.6g}{shares}")
            return
        cause = "; ".join(_words(part) for part in parts)
        self.changes.append(RateChange(self.step, names.optimizer, names.group, old, new, cause))
        if not self.monitoring:
            loud = [part for part in loud if part.source != SCHEDULER]
        if loud:
            words = "; ".join(_words(part) for part in loud)
            on = [part.source for part in loud if self._drifts[(*place, part.source)].length == DRIFT]
            if on:
                words += f" ({' and '.join(on)}: goes on like this, the next line of it comes at its end)"
            self.say(f"{_where(names)}: {old:.6g} -> {new:.6g}: {words}")

    def say(self, line: str, **scalars: float) -> None:
        """An entry of `lr-events` (one line of text) for this step, with scalars by tag."""
        self._turn_to_step()
        self._lines.append(line)
        for tag, value in scalars.items():
            self._scalar(tag, value)

    def scalars(self, values: dict[str, float]) -> None:
        """Scalars by tag for this step, each written only when it differs from the one shown last."""
        for tag, value in values.items():
            shown = self._shown.get(tag)
            if shown is None or shown[1] != value:
                self._scalar(tag, value, before=None if shown is None else shown[1])

    # what is written -------------------------------------------------------------------------------------------

    def flush(self, ledger: Ledger) -> None:
        """Writes what has gathered for the present step; at the end of every batch that made an update."""
        if self._drifts:
            self._end_drifts(ledger)
        if self._moved:
            self._factors(ledger)
        self._write()

    def close(self, ledger: Ledger, rates: Iterable[tuple[str, float]]) -> None:
        """Writes the end of every drift, and the last rates at the step of the last update."""
        if self._closed:
            return
        self._closed = True
        self._end_drifts(ledger, all_of_them=True)
        if self._moved:
            self._factors(ledger)
        self._write()
        if self._last_step is None:
            return
        last = dict(rates) if self.monitoring and self._show_rates else {}
        last |= {tag: value for tag, (_, value) in self._shown.items() if tag.startswith(FACTOR)}
        self._metrics(
            {tag: v for tag, v in last.items() if self._shown.get(tag, (None,))[0] != self._last_step}, self._last_step
        )

    def _turn_to_step(self) -> int:
        step = self.step
        if step != self._at:
            self._write()
            self._at = step
        return step

    def _scalar(self, tag: str, value: float, before: float | None = None) -> None:
        step = self._turn_to_step()
        if tag in self._scalars:
            self._write()
        shown = self._shown.get(tag)
        if before is not None and step > 0 and (shown is None or shown[0] < step - 1):
            self._metrics({tag: before}, step - 1, backward=True)
        self._scalars[tag] = value
        self._shown[tag] = (step, value)

    def _factors(self, ledger: Ledger) -> None:
        for (source, place), old in self._moved.items():
            factor, tag = ledger.used_factor(source, *place), FACTOR + source
            if place != (0, 0):
                own = f"{tag}/{self._names(place).tag}"
                if own not in self._shown and factor == ledger.used_factor(source, 0, 0):
                    continue
                tag = own
            self._scalar(tag, factor, before=old)
        self._moved.clear()

    def _drift(self, update: int, place: tuple[int, int], part: Part) -> bool:
        """Counts a change by its source; says whether the text should have it."""
        key = (*place, part.source)
        drift = self._drifts.get(key)
        size = abs(part.new - part.old) / max(abs(part.new), abs(part.old))
        if drift is not None:
            gap = update - drift.update
            if (size <= SMALL and gap <= DRIFT_GAP) or (gap <= 1 and size <= 2.0 * drift.size):
                drift.length, drift.last, drift.update, drift.step = drift.length + 1, part.new, update, self.step
                drift.gap, drift.size = max(drift.gap, gap), size
                return drift.length <= DRIFT
            self._end(key, drift)
        self._drifts[key] = Drift(part.source, self.step, part.old, part.new, update, self.step, size)
        return True

    def _end_drifts(self, ledger: Ledger, *, all_of_them: bool = False) -> None:
        for key, drift in list(self._drifts.items()):
            gap = drift.gap if drift.length > DRIFT else DRIFT_GAP
            if not all_of_them and ledger.updates(key[0]) < drift.update + gap:
                continue
            del self._drifts[key]
            self._end(key, drift)

    def _end(self, key: tuple[int, int, str], drift: Drift) -> None:
        if drift.length > DRIFT and (self.monitoring or drift.source != SCHEDULER):
            self.say(
                f"{_where(self._names(key[:2]))}: {drift.source} {drift.first:.6g} -> {drift.last:.6g} "
                f"in {drift.length} changes, steps {drift.start} to {drift.step}"
            )

    @property
    def _writes(self) -> bool:
        return self._trainer.is_global_zero and bool(self._trainer.loggers)

    def _write(self) -> None:
        step, lines, scalars = self._at, list(dict.fromkeys(self._lines)), self._scalars
        if not lines and not scalars:
            return
        self._lines, self._scalars = [], {}
        self.story += [f"step {step}: {line}" for line in lines]
        self._metrics(scalars, step, "; ".join(lines))
        if lines and self._writes:
            text = "\n".join(f"- {line}" for line in lines) if len(lines) > 1 else lines[0]
            for logger in self._trainer.loggers:
                if _can(logger, "add_text"):
                    logger.experiment.add_text(EVENTS, text, step)

    def _metrics(self, scalars: dict[str, float], step: int, text: str = "", *, backward: bool = False) -> None:
        if not self._writes:
            return
        for logger in self._trainer.loggers:
            # others drop, or refuse, a step below one that they already have
            if backward and not (_can(logger, "add_scalar") or type(logger).__name__ == "CSVLogger"):
                continue
            # of Lightning's loggers only the CSV file takes words among the numbers
            row: dict[str, Any] = dict(scalars)
            if text and type(logger).__name__ == "CSVLogger":
                row[EVENTS] = text
            if row:
                logger.log_metrics(row, step=step)

    def layout(self, rate_tags: Iterable[str], losses: str = ".*loss.*") -> None:
        """Writes TensorBoard's custom scalars layout: rates, factors and losses on one page."""
        if not self._writes:
            return
        rates = [f"^{re.escape(tag)}$" for tag in rate_tags]
        charts = {
            "effective rate": ["Multiline", rates],
            "factors": ["Multiline", [f"^{FACTOR}.*"]],
            "loss": ["Multiline", [losses]],
        }
        for logger in self._trainer.loggers:
            if _can(logger, "add_custom_scalars"):
                logger.experiment.add_custom_scalars({"learning rate": charts})


def _can(logger: Any, what: str) -> bool:
    return hasattr(getattr(logger, "experiment", None), what)


def _where(names: GroupName) -> str:
    return f"{names.optimizer}/{names.group}" if names.tag.endswith(f"/{names.group}") else names.optimizer


def _words(part: Part) -> str:
    share = f"{part.source} {part.old:.6g} -> {part.new:.6g}"
    return f"{share}: {part.reason}" if part.reason else share
