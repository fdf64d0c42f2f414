"""A story: what happened to the learning rates of one run, according to its event files."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_lr.story.derived import groups_told, lost_losses, resumptions
from lightning_lr.story.event_file import EventFile
from lightning_lr.story.old_records import old_records
from lightning_lr.story.parsed_records import Record, begins_run, take_in
from lightning_lr.story.parts import Piece, pieces, series, two_writers
from lightning_lr.story.runs import event_files

Series = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Steps and values, shape (n,) each."""

LATELY = 300.0
"""Seconds. TensorBoard's writer empties its buffer every 120 s, so a file that rests for longer is complete, or waits
for a long epoch."""

FACTOR, INCIDENT, FINDER, UPDATE = "lr-factor/", "lr-incident/", "lr-finder/", "lr-update/"
_BESIDE = re.compile(r"-(momentum|weight_decay)$")
_LOSS = re.compile("loss", re.IGNORECASE)


@dataclass
class Tags:
    """The tags of a run's scalars, by what they show.

    Args:
        rates: effective rates.
        factors: factors of the callbacks.
        losses: scalars with "loss" in their name, the training's first.
        incidents: incidents of the guard.
        finder: scalars of sweeps.
        updates: sizes of updates relative to the weights.
        other: all others.
    """

    rates: list[str] = field(default_factory=list)
    factors: list[str] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    incidents: list[str] = field(default_factory=list)
    finder: list[str] = field(default_factory=list)
    updates: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)


class Story:
    """Reads one run's folder, and continues where it left off when asked again.

    Args:
        folder: the folder with the event files, at any place that TensorBoard can read.
        name: the run's name.

    Example:
        >>> import tempfile
        >>> story = Story(tempfile.mkdtemp(), "run")
        >>> story.refresh(), story.has_data, story.records
        (False, False, [])
    """

    def __init__(self, folder: str, name: str = ".") -> None:
        self.folder, self.name = folder, name
        self._files: dict[str, EventFile] = {}
        self._forget()

    def _forget(self) -> None:
        self._pieces: list[Piece] | None = None
        self._records: list[Record] | None = None
        self._valid: list[Record] | None = None
        self._tags: Tags | None = None

    def refresh(self) -> bool:
        """Reads what was added since the last time; returns whether there was anything."""
        new = False
        for path in event_files(self.folder):
            file = self._files.get(path)
            if file is None:
                file = self._files[path] = EventFile(path, _keeps, begins_run)
            if file.read():
                take_in(file.parts)
                new = True
        if new:
            self._forget()
        return new

    @property
    def records(self) -> list[Record]:
        """All records, in the order in which they were written.

        Records that a resumed run has replaced have `superseded: True`. For files from before there were records these
        are as much as their lines say.
        """
        if self._records is None:
            self._records = self._all_records()
        return self._records

    @property
    def valid(self) -> list[Record]:
        """The records that are not superseded, sorted by step."""
        if self._valid is None:
            self._valid = sorted((r for r in self.records if not r.get("superseded")), key=lambda r: r["step"])
        return self._valid

    @property
    def structured(self) -> bool:
        """Whether there are records, and not only lines of text."""
        return any(piece.part.records for piece in self._parts)

    @property
    def has_data(self) -> bool:
        """Whether there is any data of this package."""
        return bool(self.records or self.tags.factors or self.tags.rates)

    @property
    def tags(self) -> Tags:
        """The tags of all scalars."""
        if self._tags is None:
            self._tags = self._sorted_tags()
        return self._tags

    def series(self, tag: str) -> Series:
        """The points of a scalar, sorted by step, without those that a resumed run has replaced.

        Returns:
            Steps, int64, and values, float64, shape (n,) each; empty for an unknown tag.
        """
        steps, values = series(self._parts, tag)
        return steps, values.astype(np.float64)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """`tag`, `optimizer`, `group` and, if known, `scheduled` of every param group."""
        found = groups_told(self.valid)
        for record in self.valid if not found else ():
            if record["kind"] in ("first", "change", "drift"):
                found.setdefault(record["tag"], {key: record[key] for key in ("tag", "optimizer", "group")})
        for tag in self._own_rates() if not found else ():
            optimizer, _, group = tag.removeprefix("lr-").partition("/")
            found[tag] = {"tag": tag, "optimizer": optimizer, "group": group}
        return list(found.values())

    @property
    def factors(self) -> list[str]:
        """The names of the callbacks that have a factor, in order."""
        runs = [name for record in self.valid if record["kind"] == "run" for name in record.get("factors", ())]
        return list(dict.fromkeys([*runs, *(tag.removeprefix(FACTOR).split("/")[0] for tag in self.tags.factors)]))

    @property
    def findings(self) -> list[dict[str, Any]]:
        """The findings of all sweeps, oldest first: `Finding.to_dict()` with the callback's name and the step."""
        return [
            {**r["finding"], "callback": r.get("callback", ""), "tag": r.get("tag", ""), "at": r["step"]}
            for r in self.valid
            if r["kind"] == "finding" and isinstance(r.get("finding"), dict)
        ]

    @property
    def first_step(self) -> int | None:
        """The first step of the records, rates, factors and losses."""
        return self._edge(min, 0)

    @property
    def last_step(self) -> int | None:
        """The last step of the records, rates, factors and losses."""
        return self._edge(max, -1)

    @property
    def begin(self) -> float | None:
        """The time of the first event, in seconds since 1970."""
        return min((file.begin for file in self._files.values() if file.begin is not None), default=None)

    @property
    def time(self) -> float | None:
        """The time of the latest event, in seconds since 1970."""
        return max((file.time for file in self._files.values() if file.time is not None), default=None)

    @property
    def end(self) -> Record | None:
        """The record of the last fit's end; None if there is none, or if a later fit has begun."""
        last = [record for record in self.records if record["kind"] in ("run", "end")]
        return last[-1] if last and last[-1]["kind"] == "end" else None

    @property
    def writing(self) -> bool:
        """Whether the run seems to be going on: it has no end, and an event of the last five minutes.

        The files' own times say nothing, since a copy of an old run has new ones.
        """
        return self.end is None and self.time is not None and time.time() - self.time < LATELY

    @property
    def damage(self) -> str:
        """What couldn't be read, in words; empty if everything could."""
        broken = [(path, file.damage) for path, file in self._files.items() if file.damage]
        return "; ".join(f"{os.path.basename(path)}: {damage}" for path, damage in broken)

    @property
    def remarks(self) -> list[str]:
        """What a reader should know about the files, in words."""
        found = self.broken
        if two_writers(list(self._files.values())):
            found.append("two writers wrote into this folder at the same time: their points are shown together")
        return found + resumptions(self.records)

    @property
    def broken(self) -> list[str]:
        """What is missing from the files, in words."""
        found = [self.damage] if self.damage else []
        if any(file.half for file in self._files.values()) and not self.writing:
            found.append("the file ends in the middle of a record: its writer was killed, or the disk is full")
        return found

    @property
    def _parts(self) -> list[Piece]:
        if self._pieces is None:
            self._pieces = pieces(list(self._files.values()))
        return self._pieces

    def _all_records(self) -> list[Record]:
        tags = {tag for piece in self._parts for tag in piece.part.scalars}
        found = []
        for piece in self._parts:
            own = piece.part.records or old_records(piece.part.texts, tags)
            found += [record | {"superseded": True} if record["step"] >= piece.limit else record for record in own]
        return found + lost_losses(self._parts, self._loss_tags(tags)[:1])

    def _own_rates(self) -> list[str]:
        found = {tag for piece in self._parts for tag in piece.part.scalars if tag.startswith("lr-")}
        special = (FACTOR, INCIDENT, FINDER, UPDATE)
        return sorted(tag for tag in found if not tag.startswith(special) and not _BESIDE.search(tag))

    def _loss_tags(self, there: Iterable[str]) -> list[str]:
        losses = [tag for tag in there if _LOSS.search(tag) and not tag.startswith("lr-")]
        return sorted(losses, key=lambda tag: ("train" not in tag, "val" in tag or "test" in tag, "epoch" in tag, tag))

    def _sorted_tags(self) -> Tags:
        tags = Tags()
        there = sorted({tag for piece in self._parts for tag in piece.part.scalars})
        rates = {group["tag"]: None for group in self.groups} | dict.fromkeys(self._own_rates())
        tags.rates = [tag for tag in rates if tag in there]
        kinds = {FACTOR: tags.factors, INCIDENT: tags.incidents, FINDER: tags.finder, UPDATE: tags.updates}
        for tag in there:
            kind = next((kind for kind in kinds if tag.startswith(kind)), None)
            if kind is not None:
                kinds[kind].append(tag)
            elif tag not in rates:
                tags.other.append(tag)
        tags.losses = self._loss_tags(tags.other)
        tags.other = [tag for tag in tags.other if tag not in tags.losses]
        return tags

    def _edge(self, which: Any, at: int) -> int | None:
        tags = self.tags
        ends = [record["step"] for record in self.valid]
        for tag in [*tags.rates, *tags.factors, *tags.losses]:
            steps, _ = series(self._parts, tag)
            if len(steps):
                ends.append(int(steps[at]))
        return which(ends, default=None)


def _keeps(tag: str, plugin: str) -> bool:
    return plugin == "lightning_lr" or (plugin == "text" and tag.startswith("lr-events"))
