"""A log: lines, records and scalars, collected by step, for all loggers of the trainer."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Any

from lightning_lr.console import console
from lightning_lr.internals import loggers_step
from lightning_lr.rates.change import SCHEDULER
from lightning_lr.record.curves import FINDER, UPDATE, Curves
from lightning_lr.record.pages import write_records, write_words
from lightning_lr.record.records import Records
from lightning_lr.record.repeats import TOLD, Repeats

STORY_LINES = 1000

COUNT = {"kind": "note", "source": "", "what": "count"}
"""The record of a line that counts incidents; the incidents have records of their own."""


class Log:
    """Collects what there is to say about one step, and writes it when the next step begins, or on demand.

    Every line is also a record (see `Records`), which TensorBoard's event files hold beside it. Some records have no
    line: those that are only counted, and those whose line is written only where there is a monitor.

    Args:
        trainer: its loggers are written to, on rank zero only.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.story: deque[str] = deque(maxlen=STORY_LINES)
        self.records = Records()
        self.curves = Curves(trainer)
        self._repeats = Repeats()
        self._lines: list[str] = []
        self._at = 0
        self._over = False

    @property
    def step(self) -> int:
        """The current step on the loggers' axis."""
        return loggers_step(self._trainer)

    def say(self, line: str, source: str = "", *, record: dict[str, Any] | None = None) -> None:
        """Adds a line of text to the entry of `lr-events` for this step.

        Args:
            line: the line.
            source: the name of the callback that says it.
            record: what the line is about; None for a note.
        """
        self._turn_to_step()
        self._lines.append(line)
        self.record(**(record or {"kind": "note", "source": source}), words=line)

    def tell(self, line: str, source: str = "", *, warn: bool = False, record: dict[str, Any] | None = None) -> None:
        """The same as `say`, and on the console too, where the line begins with the step."""
        console(f"step {self.step}: {line}", warn=warn)
        self.say(line, source, record=record)

    def record(self, kind: str, words: str = "", **facts: Any) -> None:
        """Adds a record for this step; `lightning_lr.record.records` lists its kinds and their entries."""
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
        """Tells a new incident, or only counts it if several of its kind were just told; always writes its scalars.

        Args:
            kind: equal for incidents that are counted together.
            line: what to say about it.
            more: see `Repeats.add`.
            last: see `Repeats.add`.
            record: its record, written whether it is told or counted.
            warn: whether the console shows it as a warning.
            scalars: its scalars, by tag.
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
        """Tells how many incidents were only counted so far."""
        for line, warn in self._repeats.all():
            self.tell(line, warn=warn, record=COUNT)

    def scalars(self, values: dict[str, float]) -> None:
        """Adds scalars by tag for this step, if they differ from the last ones.

        Those of a sweep, and those of what an update did, are always added.
        """
        for tag, value in values.items():
            shown = self.curves.shown(tag)
            if tag.startswith((FINDER, UPDATE)):
                self._scalar(tag, value)
            elif shown is None or shown != value:
                self._scalar(tag, value, before=shown, lasting=True)

    def _turn_to_step(self) -> int:
        step = self.step
        if step != self._at:
            self._write()
            self._at = step
        return step

    def _scalar(self, tag: str, value: float, before: float | None = None, *, lasting: bool = False) -> None:
        step = self._turn_to_step()
        if self.curves.holds(tag):
            self._write()
        self.curves.add(step, tag, value, before, lasting=lasting)

    def _write(self, *, logs: bool = False, ends: bool = False) -> None:
        step, lines = self._at, list(dict.fromkeys(self._lines))
        self._lines = []
        self.story += [f"step {step}: {line}" for line in lines]
        records, loggers = self.records.take(), self._trainer.loggers if self.curves.writes else ()
        # records come before the scalars of their step, so that a run's first record comes first
        write_records(loggers, step, records)
        self.curves.write(step, "; ".join(lines), logs=logs, ends=ends)
        write_words(loggers, step, lines)
