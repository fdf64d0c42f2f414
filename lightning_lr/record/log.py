"""The log: lines, records and scalars, gathered by step, for all loggers of the trainer."""

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
"""The record of a line that counts incidents, which have records of their own."""


class Log:
    """Collects what is told of one step, and writes it when the next one begins, or when it is asked to.

    Every line is a record too, see `Records`, which TensorBoard's event files have beside it. There are records without
    a line: of what is only counted, and of what is told only where there is a monitor.

    Args:
        trainer: whose loggers are written to, on rank zero only.
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
        """The present place on the loggers' axis."""
        return loggers_step(self._trainer)

    def say(self, line: str, source: str = "", *, record: dict[str, Any] | None = None) -> None:
        """An entry of `lr-events` (one line of text) for this step.

        Args:
            line: what is said.
            source: the name of the callback that says it.
            record: what the line is about; None: a note.
        """
        self._turn_to_step()
        self._lines.append(line)
        self.record(**(record or {"kind": "note", "source": source}), words=line)

    def tell(self, line: str, source: str = "", *, warn: bool = False, record: dict[str, Any] | None = None) -> None:
        """What `say` does, and on the console too, where it begins with the step."""
        console(f"step {self.step}: {line}", warn=warn)
        self.say(line, source, record=record)

    def record(self, kind: str, words: str = "", **facts: Any) -> None:
        """A record for this step; its kinds and their facts are those of `lightning_lr.record.records`."""
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
        # before the numbers of their step: a run's first record comes first
        write_records(loggers, step, records)
        self.curves.write(step, "; ".join(lines), logs=logs, ends=ends)
        write_words(loggers, step, lines)
