"""The journal: every change of a rate, and every incident, to all loggers of the trainer."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from lightning_lr.change import SCHEDULER, Part, RateChange
from lightning_lr.console import console
from lightning_lr.curves import EVENTS, FACTOR, FINDER, INCIDENT, UPDATE, Curves
from lightning_lr.drift import MANY, Drift
from lightning_lr.internals import file_writer, loggers_step, logs_now
from lightning_lr.ledger import Ledger
from lightning_lr.names import GroupName
from lightning_lr.records import MOST, Records, summary
from lightning_lr.repeats import TOLD, Repeats

STORY_LINES = 1000
CHANGES_KEPT = 10_000

COUNT = {"kind": "note", "source": "", "what": "count"}
"""The record of a line that counts incidents, which have records of their own."""


class Journal:
    """Collects within a batch, writes at its end, on rank zero only, on the loggers' own axis.

    Scalars: the effective rate under Lightning's tag names, and `lr-factor/<callback>` (for a group whose factor
    differs from the first group's, `lr-factor/<callback>/<group>`); see `Curves`. Text: `lr-events`, one entry for each
    step that has something to say. A drift is told by its first changes and once more when it ends, incidents of one
    kind by the first of them and by their count. Beside the words each of them is a record, see `Records`, which
    TensorBoard's event files have too, and for which it makes no difference whether there is a monitor.

    Args:
        trainer: whose loggers are written to.
        names: gives the names of the param group at (optimizer, group).
        sources: of the factors, which all have a curve.
        monitoring: whether the text has the scheduler's own changes and the first rates too, and the curves the
            trainer's own logging steps and the last rates (`LRMonitor`).
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
        self.records = Records()
        self._drifts: dict[tuple[int, int, str], Drift] = {}
        self._repeats = Repeats()
        self._sources = list(sources)
        self._begun: set[tuple[int, int]] = set()
        self._moved: dict[tuple[str, tuple[int, int]], float | None] = {}
        self._lines: list[str] = []
        self._curves = Curves(trainer)
        self._at = 0
        self._closed = self._over = False
        self._last_step: int | None = None

    @property
    def step(self) -> int:
        """The present place on the loggers' axis."""
        return loggers_step(self._trainer)

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
        of = {"tag": names.tag, "optimizer": names.optimizer, "group": names.group, "update": update}
        first = place not in self._begun
        if first:
            # every curve runs from the first update on, also while nothing changes
            self._begun.add(place)
            self._moved = {(source, place): None for source in self._sources} | self._moved
        if self._show_rates and (first or old != new):
            self._scalar(names.tag, new, before=old, lasting=True)
        if old == new:
            return
        of["parts"] = [part._asdict() for part in parts]
        if old is None:
            shares = "".join(f", {part.source} {part.new:.6g}" for part in parts)
            words = f"{_where(names)}: first update at {new:.6g}{shares}"
            self._tell_of_rate(words, {"kind": "first", "new": new, **of}, said=self.monitoring)
            return
        cause = "; ".join(_words(part) for part in parts)
        self.changes.append(RateChange(self.step, names.optimizer, names.group, old, new, cause))
        if not loud:
            return
        told = loud if self.monitoring else [part for part in loud if part.source != SCHEDULER]
        words = "; ".join(_words(part) for part in told or loud)
        on = [part.source for part in loud if self._drifts[(*place, part.source)].length == MANY]
        if on:
            words += f" ({' and '.join(on)}: goes on like this, the next line of it comes at its end)"
        record = {"kind": "change", "old": old, "new": new, **of, "cause": cause, "running": on}
        record["loud"] = [part.source for part in loud]
        self._tell_of_rate(f"{_where(names)}: {old:.6g} -> {new:.6g}: {words}", record, said=bool(told))

    def _tell_of_rate(self, words: str, record: dict[str, Any], *, said: bool) -> None:
        if said:
            self.say(words, record=record)
        else:
            self.record(**record, words=words)

    def say(self, line: str, source: str = "", *, record: dict[str, Any] | None = None, **scalars: float) -> None:
        """An entry of `lr-events` (one line of text) for this step, with scalars by tag.

        Args:
            line: what is said.
            source: the name of the callback that says it.
            record: what the line is about; None: a note.
            scalars: by tag.
        """
        self._turn_to_step()
        self._lines.append(line)
        for tag, value in scalars.items():
            self._scalar(tag, value)
        self.record(**(record or {"kind": "note", "source": source}), words=line)

    def tell(
        self,
        line: str,
        source: str = "",
        *,
        warn: bool = False,
        record: dict[str, Any] | None = None,
        **scalars: float,
    ) -> None:
        """What `say` does, and on the console too, where it begins with the step."""
        console(f"step {self.step}: {line}", warn=warn)
        self.say(line, source, record=record, **scalars)

    def record(self, kind: str, words: str = "", **facts: Any) -> None:
        """A record for this step; its kinds and their facts are those of `lightning_lr.records`."""
        self._turn_to_step()
        rare = any(source != SCHEDULER for source in facts.get("loud", ()))
        self.records.add({"kind": kind, "step": self._at, **facts, "words": words}, rare=rare)
        if self._over:
            self._write()

    def incident(
        self,
        kind: Hashable,
        line: str,
        more: str,
        last: str,
        *,
        record: dict[str, Any],
        warn: bool = False,
        **scalars: float,
    ) -> None:
        """Tells one that is new, or counts it, if some of its kind have just been told; its scalars are always written.

        Args:
            kind: equal for incidents that are told as one.
            line: what is told of it.
            more: see `Repeats.add`.
            last: see `Repeats.add`.
            record: of it, whether it is told or counted.
            warn: whether the console has it as a warning.
            scalars: by tag.
        """
        told = self._repeats.add(kind, self.step, more, last, warn=warn)
        record = {**record, "told": told > 0}
        if told:
            self.sum_up()
            self.tell(line if told < TOLD else f"{line}; more like this are counted", warn=warn, record=record)
        else:
            self.record(**record, words=line)
        for tag, value in scalars.items():
            self._scalar(tag, value)

    def sum_up(self) -> None:
        """Tells the number of the incidents that have only been counted by now."""
        for line, warn in self._repeats.all():
            self.tell(line, warn=warn, record=COUNT)

    def scalars(self, values: dict[str, float]) -> None:
        """Scalars by tag for this step; each is written only when it differs from the one shown last, but those of a
        sweep, and of what an update did."""
        for tag, value in values.items():
            shown = self._curves.shown(tag)
            if tag.startswith((FINDER, UPDATE)):
                self._scalar(tag, value)
            elif shown is None or shown != value:
                self._scalar(tag, value, before=shown, lasting=True)

    # what is written -------------------------------------------------------------------------------------------

    def flush(self, ledger: Ledger) -> None:
        """Writes what has gathered for the present step; at the end of every batch that made an update."""
        step = self.step
        for line, warn in self._repeats.due(step):
            self.tell(line, warn=warn, record=COUNT)
        waits = self._drifts or self._moved or self._lines or self.records.waiting or self._curves.busy
        if not waits and not (self.monitoring and logs_now(self._trainer)):
            self._at = step
            return
        if self._drifts:
            self._end_drifts(ledger)
        if self._moved:
            self._factors(ledger)
        logs = logs_now(self._trainer)
        self._turn_to_step()
        self._curves.rest(self._at, dense=logs and self.monitoring)
        self._write(logs=logs, ends=True)

    def close(self, ledger: Ledger, rates: dict[str, float], end: dict[str, Any]) -> None:
        """Writes the end of every drift, the last rates at the step of the last update, and the record of the end.

        Args:
            ledger: of the run.
            rates: the last ones, by tag.
            end: what else the record says.
        """
        if self._closed:
            return
        self.sum_up()
        self._closed = True
        self._end_drifts(ledger, all_of_them=True)
        if self._moved:
            self._factors(ledger)
        if self.records.left_out:
            self.record(
                "note", f"{self.records.left_out} records were left out, since there had been {MOST}", source=""
            )
        self.record("end", **end, rates=rates)
        self._write()
        if self._last_step is not None:
            self._curves.close(self._last_step, rates if self.monitoring and self._show_rates else {})
        # other callbacks may come after the one that closes, and have last words too
        self._over = True

    def _turn_to_step(self) -> int:
        step = self.step
        if step != self._at:
            self._write()
            self._at = step
        return step

    def _scalar(self, tag: str, value: float, before: float | None = None, *, lasting: bool = False) -> None:
        step = self._turn_to_step()
        if self._curves.holds(tag):
            self._write()
        self._curves.add(step, tag, value, before, lasting=lasting)

    def _factors(self, ledger: Ledger) -> None:
        for (source, place), old in self._moved.items():
            factor, tag = ledger.used_factor(source, *place), FACTOR + source
            if place != (0, 0):
                own = f"{tag}/{self._names(place).tag}"
                if self._curves.shown(own) is None and factor == ledger.used_factor(source, 0, 0):
                    continue
                tag = own
            self._scalar(tag, factor, before=old, lasting=True)
        self._moved.clear()

    def _drift(self, update: int, place: tuple[int, int], part: Part) -> bool:
        """Counts a change by its source; says whether the text should have it."""
        key = (*place, part.source)
        drift = self._drifts.get(key)
        if drift is not None:
            if drift.takes(part.old, part.new, at=update, step=self.step):
                return not drift.running
            self._end(key, drift)
        self._drifts[key] = Drift.begin(part.old, part.new, at=update, step=self.step)
        return True

    def _end_drifts(self, ledger: Ledger, *, all_of_them: bool = False) -> None:
        for key, drift in list(self._drifts.items()):
            if all_of_them or drift.over(ledger.updates(key[0])):
                del self._drifts[key]
                self._end(key, drift)

    def _end(self, key: tuple[int, int, str], drift: Drift) -> None:
        _, _, source = key
        if not drift.running:
            return
        names = self._names(key[:2])
        record = {"kind": "drift", "tag": names.tag, "optimizer": names.optimizer, "group": names.group}
        self._tell_of_rate(
            f"{_where(names)}: {source} {drift.words}",
            {**record, "source": source, **drift.facts},
            said=self.monitoring or source != SCHEDULER,
        )

    def _write(self, *, logs: bool = False, ends: bool = False) -> None:
        step, lines = self._at, list(dict.fromkeys(self._lines))
        self._lines = []
        self.story += [f"step {step}: {line}" for line in lines]
        self._curves.write(step, "; ".join(lines), logs=logs, ends=ends)
        if lines and self._curves.writes:
            text = "\n".join(f"- {line}" for line in lines) if len(lines) > 1 else lines[0]
            for logger in self._trainer.loggers:
                if _can(logger, "add_text"):
                    logger.experiment.add_text(EVENTS, text, step)
        records = self.records.take()
        if records and self._curves.writes:
            of_step = summary(records)
            for logger in self._trainer.loggers:
                if (writer := file_writer(logger)) is not None:
                    writer.add_summary(of_step, step)

    def layout(self, rate_tags: Iterable[str], losses: str = "(?!lr-).*loss.*", *, ratios: bool = False) -> None:
        """Writes TensorBoard's custom scalars layout: rates, factors, losses and incidents on one page.

        Args:
            rate_tags: of the rates.
            losses: a pattern of the losses' tags.
            ratios: whether there are points of what updates did.
        """
        if not self._curves.writes:
            return
        rates = [f"^{re.escape(tag)}$" for tag in rate_tags]
        charts = {
            "effective rate": ["Multiline", rates],
            "factors": ["Multiline", [f"^{FACTOR}.*"]],
            "loss": ["Multiline", [losses]],
            **({"update by weight": ["Multiline", [f"^{UPDATE}.*"]]} if ratios else {}),
            # single points: smoothed, they would be drawn where there was nothing
            "incidents (set smoothing to 0)": ["Multiline", [f"^{INCIDENT}.*"]],
        }
        for logger in self._trainer.loggers:
            if _can(logger, "add_custom_scalars"):
                logger.experiment.add_custom_scalars({"learning rate": charts})


def _can(logger: Any, what: str) -> bool:
    return hasattr(getattr(logger, "experiment", None), what)


def _where(names: GroupName) -> str:
    return f"{names.optimizer}/{names.group}" if names.group else names.optimizer


def _words(part: Part) -> str:
    share = f"{part.source} {part.old:.6g} -> {part.new:.6g}"
    return f"{share}: {part.reason}" if part.reason else share
