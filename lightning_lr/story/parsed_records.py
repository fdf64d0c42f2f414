"""Records: what a run says of itself as data, out of the texts of its event files.

What the kinds hold is said in `lightning_lr.record.records`, which writes them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from lightning_lr.record.records import PLUGIN, TAG
from lightning_lr.story.event_file import Part, Text

Record = dict[str, Any]

SCHEDULER = "scheduler"
"""The source of a change of the base rate."""

FAR = 3.0
"""Decades: what a change from or to 0 counts for."""

PASSING = 0.04
"""Decades, a tenth of the rate: no more than this the schedule does in passing, beside a change of a callback's."""


def is_record(text: Text) -> bool:
    """Is it of ours?"""
    return text.plugin == PLUGIN and text.tag == TAG


def begins_run(text: Text) -> bool:
    """Does a run, or a part of it, begin here?"""
    return is_record(text) and any('"run"' in one and load(one).get("kind") == "run" for one in text.texts)


def records(texts: Iterable[Text]) -> list[Record]:
    """All records, in their order; what is no JSON object with a kind and a step is left out."""
    lines = [(one, text.step) for text in texts if is_record(text) for one in text.texts]
    try:
        # all at once: equal keys are then one string
        found = json.loads(f"[{','.join(line for line, _ in lines)}]")
        if len(found) != len(lines):
            raise ValueError
    except ValueError:
        found = [load(line) for line, _ in lines]
    return [
        record | {"step": step} if not isinstance(record.get("step"), int) else record
        for record, (_, step) in zip(found, lines, strict=True)
        if isinstance(record, dict) and isinstance(record.get("kind"), str)
    ]


def take_in(parts: Iterable[Part]) -> None:
    """Turns a file's texts into records, and drops them: they are large. The words beside records say the same."""
    parts = list(parts)
    for part in parts:
        part.records += records(part.texts)
        part.texts = [text for text in part.texts if not is_record(text)]
    if any(part.records for part in parts):
        for part in parts:
            part.texts.clear()


def load(line: str) -> Record:
    """One record; empty where the line holds none."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def number(value: Any) -> float:
    """A number of a record: what is not finite is there as a string; nan where there is none.

    Example:
        >>> number("inf"), number(0.5), number(None)
        (inf, 0.5, nan)
    """
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def decades(old: Any, new: Any) -> float:
    """How far a rate or a factor went, in decades; what comes from or goes to 0, or is not finite, went far.

    Example:
        >>> decades(0.1, 0.001), decades(0.5, 0.0), decades(1.0, 1.0)
        (2.0, 3.0, 0.0)
    """
    old, new = number(old), number(new)
    if old == new:
        return 0.0
    if not (math.isfinite(old) and math.isfinite(new)) or min(old, new) <= 0:
        return FAR
    return abs(math.log10(new / old))


def loudest(record: Record) -> list[Record]:
    """The parts of a change, those that made most of it first; what the schedule did in passing is left out.

    Example:
        >>> parts = [{"source": "Mine", "old": 1.0, "new": 0.5}, {"source": "scheduler", "old": 1.0, "new": 0.01}]
        >>> [part["source"] for part in loudest({"parts": parts})]
        ['scheduler', 'Mine']
    """
    parts = [part for part in record.get("parts", ()) if isinstance(part, dict) and "source" in part]
    sizes = {id(part): decades(part.get("old"), part.get("new")) for part in parts}
    own = max((sizes[id(part)] for part in parts if part["source"] != SCHEDULER), default=0.0)
    kept = [part for part in parts if part["source"] != SCHEDULER or not own or sizes[id(part)] > PASSING]
    return sorted(kept, key=lambda part: -sizes[id(part)])
