"""Records: what a run says of itself as data, out of the texts of its event files.

What the kinds hold is said in `lightning_lr.records`, which writes them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from lightning_lr.records import PLUGIN, TAG
from lightning_lr.story.events import Part, Text

Record = dict[str, Any]


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
