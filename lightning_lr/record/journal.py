"""The journal: every change of a rate and every incident, for all loggers of the trainer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from lightning_lr.internals import logs_now
from lightning_lr.rates.change import SCHEDULER, Part, RateChange
from lightning_lr.rates.ledger import Ledger
from lightning_lr.rates.names import GroupName
from lightning_lr.record.curves import FACTOR
from lightning_lr.record.drift import MANY, Drift
from lightning_lr.record.log import COUNT, Log
from lightning_lr.record.records import MOST

CHANGES_KEPT = 10_000


class Journal(Log):
    """Collects during a batch and writes at its end, on rank zero only, on the loggers' own axis.

    Scalars: the effective rate under Lightning's tag names, and `lr-factor/<callback>` (for a param group whose factor
    differs from the first one's, `lr-factor/<callback>/<group>`); see `Curves`. Text: `lr-events`, one entry for each
    step that has something to say. Of a drift the first changes are reported and its end, of incidents of one kind the
    first few and the number of the others.

    Args:
        trainer: its loggers are written to.
        names: returns the names of the param group at (optimizer, group).
        sources: the sources of the factors; each has a curve.
        monitoring: whether an `LRMonitor` is there. Then the text has the scheduler's own changes and the first rates
            too, and the curves have points at the trainer's logging steps and at the end.
        show_rates: whether the rates themselves are written; another callback may already write their tags.
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
        super().__init__(trainer)
        self._names = names
        self.monitoring = monitoring
        self._show_rates = show_rates
        self.changes: deque[RateChange] = deque(maxlen=CHANGES_KEPT)
        self._drifts: dict[tuple[int, int, str], Drift] = {}
        self._sources = list(sources)
        self._begun: set[tuple[int, int]] = set()
        self._moved: dict[tuple[str, tuple[int, int]], float | None] = {}
        self._closed = False
        self._last_step: int | None = None

    def updated(self) -> None:
        """Notes that a real update was made in this batch."""
        self._last_step = self.step

    def rate(
        self, update: int, names: GroupName, place: tuple[int, int], old: float | None, new: float, parts: list[Part]
    ) -> None:
        """A param group made its `update`-th update at another rate, or with other factors: `Listener.rate_used`."""
        for part in parts:
            if part.source != SCHEDULER:
                self._moved[part.source, place] = None if old is None else part.old
        loud = [part for part in parts if old is not None and self._drift(update, place, part)]
        first = place not in self._begun
        if first:
            # every curve begins at the first update, even while nothing changes
            self._begun.add(place)
            self._moved = {(source, place): None for source in self._sources} | self._moved
        if self._show_rates and (first or old != new):
            self._scalar(names.tag, new, before=old, lasting=True)
        if old is None:
            shares = "".join(f", {part.source} {part.new:.6g}" for part in parts)
            words = f"{names.where}: first update at {new:.6g}{shares}"
            self._report_rate(words, {"kind": "first", "new": new, **_of(names, update, parts)}, said=self.monitoring)
            return
        cause = "; ".join(part.words for part in parts)
        if old == new:
            # a factor may still have changed: at a rate of 0, or against the schedule
            loud = [part for part in loud if part.old != part.new]
        else:
            self.changes.append(RateChange(self.step, names.optimizer, names.group, old, new, cause))
        if not loud:
            return
        told = loud if self.monitoring else [part for part in loud if part.source != SCHEDULER]
        words = "; ".join(part.words for part in told or loud)
        on = [part.source for part in loud if self._drifts[(*place, part.source)].length == MANY]
        if on:
            words += f" ({' and '.join(on)}: continues like this; the next line comes when it ends)"
        record = {"kind": "change", "old": old, "new": new, **_of(names, update, parts), "cause": cause, "running": on}
        record["loud"] = [part.source for part in loud]
        rates = f"{old:.6g} -> {new:.6g}" if old != new else f"at {new:.6g} as before"
        self._report_rate(f"{names.where}: {rates}: {words}", record, said=bool(told))

    def _report_rate(self, words: str, record: dict[str, Any], *, said: bool) -> None:
        if said:
            self.say(words, record=record)
        else:
            self.record(**record, words=words)

    def flush(self, ledger: Ledger) -> None:
        """Writes what was collected for the current step; at the end of every batch that made an update."""
        step = self.step
        for line, warn in self._repeats.due(step):
            self.tell(line, warn=warn, record=COUNT)
        waits = self._drifts or self._moved or self._lines or self.records.waiting or self.curves.busy
        if not waits and not (self.monitoring and logs_now(self._trainer)):
            self._at = step
            return
        if self._drifts:
            self._end_drifts(ledger)
        if self._moved:
            self._factors(ledger)
        logs = logs_now(self._trainer)
        self._turn_to_step()
        self.curves.rest(self._at, dense=logs and self.monitoring)
        self._write(logs=logs, ends=True)

    def close(self, ledger: Ledger, rates: dict[str, float], end: dict[str, Any]) -> None:
        """Writes the end of every drift, the last rates at the step of the last update, and the record of the end.

        Args:
            ledger: the run's ledger.
            rates: the last effective rates, by tag.
            end: the further entries of the record.
        """
        if self._closed:
            return
        self.sum_up()
        self._closed = True
        self._end_drifts(ledger, all_of_them=True)
        if self._moved:
            self._factors(ledger)
        left_out = self.records.left_out
        if left_out:
            words = f"{left_out} records were left out, since there had been {MOST}"
            self.record("note", words, source="", what="left out")
        self.record("end", **end, rates=rates, left_out=left_out)
        self._write()
        if self._last_step is not None:
            self.curves.close(self._last_step, rates if self.monitoring and self._show_rates else {})
        # other callbacks may run after the one that closes, and still have something to say
        self._over = True

    def _factors(self, ledger: Ledger) -> None:
        for (source, place), old in self._moved.items():
            factor, tag = ledger.used_factor(source, *place), FACTOR + source
            if place != (0, 0):
                own = f"{tag}/{self._names(place).tag}"
                if self.curves.shown(own) is None and factor == ledger.used_factor(source, 0, 0):
                    continue
                tag = own
            self._scalar(tag, factor, before=old, lasting=True)
        self._moved.clear()

    def _drift(self, update: int, place: tuple[int, int], part: Part) -> bool:
        """Counts a change by its source; returns whether the text should have it."""
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
        self._report_rate(
            f"{names.where}: {source} {drift.words}",
            {"kind": "drift", **names.facts, "source": source, **drift.facts},
            said=self.monitoring or source != SCHEDULER,
        )


def _of(names: GroupName, update: int, parts: list[Part]) -> dict[str, Any]:
    return {**names.facts, "update": update, "parts": [part._asdict() for part in parts]}
