"""Marks: what the timeline shows of the records; many similar records are one mark with a count."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from lightning_lr.story.parsed_records import SCHEDULER, loudest

SHOWN = {"change", "drift", "incident", "finding", "note", "first"}
"""Kinds that have a mark. The sentence at the top says what `run` and `end` would."""

MOST = 2000
"""The most marks in one answer: a browser can still draw this many at once."""


class Key(NamedTuple):
    """What makes records similar: a filter shows or hides all of one kind and cause."""

    kind: str
    cause: str
    what: str
    tag: str


def key(record: dict[str, Any]) -> Key:
    """The key of a record.

    Example:
        >>> part = {"source": "Warmup", "old": 0.5, "new": 1.0}
        >>> key({"kind": "change", "tag": "lr-SGD", "parts": [{**part, "source": "scheduler"}, part]}).cause
        'scheduler'
        >>> key({"kind": "incident", "callback": "DivergenceGuard", "what": "dropped"})
        Key(kind='incident', cause='DivergenceGuard', what='dropped', tag='')
    """
    kind = record["kind"]
    if kind == "change":
        return Key("change", next((part["source"] for part in loudest(record)), SCHEDULER), "", record.get("tag", ""))
    if kind == "drift":
        # a drift is a slow change
        return Key("change", record.get("source", ""), "", record.get("tag", ""))
    if kind == "incident":
        return Key(kind, record.get("callback", ""), record.get("what", ""), "")
    if kind == "first":
        return Key(kind, "", "", record.get("tag", ""))
    return Key(kind, record.get("callback") or record.get("source") or "", "", "")


def start(record: dict[str, Any]) -> int:
    """The step at which the record's subject began.

    Example:
        >>> start({"kind": "drift", "step": 9, "start": 4}), start({"kind": "note", "step": 9})
        (4, 9)
        >>> start({"kind": "finding", "step": 9, "finding": {"losses": [1.0] * 6}})
        4
    """
    if record["kind"] == "finding":
        # a sweep has one loss for each of its updates
        return max(0, int(record["step"]) + 1 - max(1, len(record.get("finding", {}).get("losses", ()))))
    return int(record.get("start", record["step"]))


def marks(records: Iterable[dict[str, Any]], bins: int) -> list[dict[str, Any]]:
    """Marks in the order of their steps.

    Args:
        records: the records, sorted by step.
        bins: parts of the range of steps; similar records within one part make one mark.
    """
    shown = [record for record in records if record["kind"] in SHOWN and not record.get("superseded")]
    if not shown:
        return []
    low, high = shown[0]["step"], shown[-1]["step"]
    width = max(1, -(-(high - low + 1) // bins))
    while True:
        # bins begin at multiples of the width, so that marks stay in place while a run goes on
        found: dict[tuple[Key, int], dict[str, Any]] = {}
        for record in shown:
            alike = key(record)
            _add(found, (alike, record["step"] // width), alike, record)
        if len(found) <= MOST:
            return list(found.values())
        width *= 2


def _add(found: dict[Any, dict[str, Any]], place: Any, alike: Key, record: dict[str, Any]) -> None:
    mark = found.get(place)
    if mark is None:
        found[place] = {
            **alike._asdict(),
            "step": start(record),
            "step_end": record["step"],
            "count": 1,
            "words": record.get("words", ""),
            "last_words": "",
            "drift": record["kind"] == "drift",
            "old": record.get("old", record.get("first")),
            "new": record.get("new", record.get("last")),
            "loss": record.get("loss"),
        }
        return
    mark["count"] += 1
    mark["step"] = min(mark["step"], start(record))
    mark["step_end"] = record["step"]
    mark["last_words"] = record.get("words", "")
    mark["new"] = record.get("new", record.get("last"))
    mark["loss"] = _larger(mark["loss"], record.get("loss"))


def _larger(one: Any, other: Any) -> Any:
    """The one of two losses that should be seen: a loss that isn't finite is a string here, and comes first."""
    for value in (one, other):
        if isinstance(value, str):
            return value
    return other if one is None else one if other is None else max(one, other)
