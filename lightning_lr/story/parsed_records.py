"""Parsed records: what a run says about itself as data, out of the texts of its event files.

`lightning_lr.record.records`, which writes them, lists the kinds and their entries.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from lightning_lr.record.records import PLUGIN, TAG
from lightning_lr.story.event_file import Segment, Text

Record = dict[str, Any]

SCHEDULER = "scheduler"
"""The source of a change of the base rate."""

FAR = 3.0
"""Decades that a change from or to 0 counts for."""

PASSING = 0.04
"""Decades (a tenth of the rate). A smaller change by the schedule, beside a callback's, is not worth a mention."""


def is_record(text: Text) -> bool:
    """Whether it holds records of this package."""
    return text.plugin == PLUGIN and text.tag == TAG


def begins_run(text: Text) -> bool:
    """Whether a run, or a part of one, begins here."""
    return is_record(text) and any('"run"' in one and load(one).get("kind") == "run" for one in text.texts)


def records(texts: Iterable[Text]) -> list[Record]:
    """All records, in their order; whatever is not a JSON object with a kind is left out."""
    lines = [(one, text.step) for text in texts if is_record(text) for one in text.texts]
    try:
        # parsed all at once, equal keys share one string
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


def take_in(parts: Iterable[Segment]) -> None:
    """Parses a file's texts into records, and drops the texts: they are large, and lines beside records repeat them."""
    parts = list(parts)
    for part in parts:
        part.records += records(part.texts)
        part.texts = [text for text in part.texts if not is_record(text)]
    if any(part.records for part in parts):
        for part in parts:
            part.texts.clear()


def load(line: str) -> Record:
    """One record; empty if the line holds none."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def number(value: Any) -> float:
    """A record's number, which is a string where it is not finite; nan if there is none.

    Example:
        >>> number("inf"), number(0.5), number(None)
        (inf, 0.5, nan)
    """
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def decades(old: Any, new: Any) -> float:
    """How far a rate or a factor moved, in decades; from or to 0, or to a number that is not finite, counts as far.

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
    """The parts of a change, the largest first, without a small change by the schedule beside a callback's.

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
