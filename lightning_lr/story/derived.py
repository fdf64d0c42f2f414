"""Derived facts: what a run's records and scalars say only indirectly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lightning_lr.story.parsed_records import Record
from lightning_lr.story.parts import Piece, series


def groups_told(records: Iterable[Record]) -> dict[str, dict[str, Any]]:
    """`tag`, `optimizer`, `group` and, if known, `scheduled` of the param groups that a run names, by tag."""
    found = {}
    for record in records:
        for group in record.get("groups", ()) if record["kind"] == "run" else ():
            names = {key: str(group.get(key, "")) for key in ("tag", "optimizer", "group")}
            known = {"scheduled": bool(group["scheduled"])} if "scheduled" in group else {}
            found[group["tag"]] = names | known
    return found


def plateaus(records: Iterable[Record]) -> list[str]:
    """The names of the callbacks that lower the rate on a plateau."""
    told = [one for record in records if record["kind"] == "run" for one in record.get("callbacks", ())]
    return list(dict.fromkeys(one["name"] for one in told if str(one["written"]).startswith("PlateauDecay(")))


def lost_losses(parts: Sequence[Piece], tags: Iterable[str]) -> list[Record]:
    """A note for each loss that is not finite at its end, at the step where that began.

    Without a guard nothing else says so.
    """
    found: list[Record] = []
    for tag in tags:
        steps, values = series(parts, tag)
        finite = np.isfinite(values)
        if len(values) and not finite[-1]:
            good = np.flatnonzero(finite)
            first = int(good[-1]) + 1 if len(good) else 0
            words = f"{tag} is {values[first]:g} from here on"
            found.append({"kind": "note", "source": "", "what": "lost", "step": int(steps[first]), "words": words})
    return found


def resumptions(records: Iterable[Record]) -> list[str]:
    """A sentence for each time that the run was resumed at a step that it had passed."""
    found, end, passed = [], Record(), False
    for record in records:
        if record["kind"] == "end":
            end = record
        passed |= bool(record.get("superseded"))
        if record["kind"] == "run" and record.get("resumed"):
            # a fit that continues where the last one ended replaces nothing, though it begins at the step of that end
            if passed and record.get("made", -1) != end.get("updates"):
                found.append(
                    f"the run was resumed at step {record['step']:,}{_ended(end)}: what it has made anew replaces what "
                    f"was there"
                )
            end, passed = Record(), False
    if passed and not found:
        found.append("the run was resumed at a lower step: what it has made anew replaces what was there")
    return found


def _ended(end: Record) -> str:
    if not end:
        return ""
    error = f": {end['error']}" if end.get("error") else ""
    return f" (it had {end.get('status', 'ended')} at step {end['step']:,}{error})"
