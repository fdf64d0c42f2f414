"""Parts: what several writers, or one writer that started anew, left in one folder, put together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_lr.story.event_file import EventFile, Segment

OURS = "lr-"
"""What the tags of our scalars begin with, except the rates of a scheduler with a name of its own."""


@dataclass
class Piece:
    """A part, and the step from which it is superseded.

    Args:
        part: what was written.
        file: the file that holds it.
        limit: the step at which a later part began, from which this part no longer counts; infinite if none did.
        later: later parts whose beginning isn't known; they supersede a tag from their first point of it.
    """

    part: Segment
    file: EventFile
    limit: float = math.inf
    later: tuple[Segment, ...] = ()

    def limit_of(self, tag: str) -> float:
        """The step from which the points of a tag no longer count."""
        begins = (int(points[0].min()) for part in self.later for points in part.scalars.get(tag, ()))
        return min([self.limit, *begins])


def pieces(files: Sequence[EventFile]) -> list[Piece]:
    """All parts in the order in which they began, with what supersedes them.

    A file that begins after another one has ended continues the resumed run, and so does each later part of one file.
    Files that were written at the same time come from two writers, and neither supersedes the other.
    """
    order = sorted(files, key=lambda file: math.inf if file.begin is None else file.begin)
    found = [Piece(part, file) for file in order for part in file.parts if part.scalars or part.texts or part.records]
    first = [_first(piece.part) for piece in found]
    for i, piece in enumerate(found):
        for later, begins in zip(found[i + 1 :], first[i + 1 :], strict=True):
            if later.file is not piece.file and _together(piece.file, later.file):
                continue
            if begins is None:
                piece.later += (later.part,)
            elif begins <= _last(piece.part) and (later.file is not piece.file or begins < _last(piece.part)):
                piece.limit = min(piece.limit, begins)
    return found


def two_writers(files: Sequence[EventFile]) -> bool:
    """Whether two files with data of this package were written at the same time."""
    ours = [file for file in files if any(_first(part) is not None for part in file.parts)]
    return any(_together(a, b) for i, a in enumerate(ours) for b in ours[i + 1 :])


def series(found: Sequence[Piece], tag: str) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
    """The points of a tag that count, by step; points of one step are in the order in which they were written."""
    steps: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    values: list[NDArray[np.floating]] = [np.zeros(0, np.float32)]
    for piece in found:
        own = piece.part.scalars.get(tag, [])
        if not own:
            continue
        if len(own) > 1:
            own[:] = [(np.concatenate([s for s, _ in own]), np.concatenate([v for _, v in own]))]
        own_steps, own_values = own[0]
        limit = piece.limit_of(tag)
        if limit <= own_steps.max():
            take = own_steps < limit
            own_steps, own_values = own_steps[take], own_values[take]
        steps.append(own_steps)
        values.append(own_values)
    if len(steps) == 2:
        at, heights = steps[1], values[1]
    else:
        at, heights = np.concatenate(steps), np.concatenate(values)
    if len(at) > 1 and (at[1:] < at[:-1]).any():
        order = np.argsort(at, kind="stable")
        at, heights = at[order], heights[order]
    return at, heights


def _first(part: Segment) -> int | None:
    """The first step of a part; None if no data of this package tells it."""
    for record in part.records:
        if record["kind"] == "run":
            return record["step"]
    begins = [int(points[0][0].min()) for tag, points in part.scalars.items() if tag.startswith(OURS)]
    return min(begins, default=None)


def _last(part: Segment) -> float:
    """The last step with data of this package."""
    ends = [int(points[-1][0].max()) for tag, points in part.scalars.items() if tag.startswith(OURS)]
    told = [*(text.step for text in part.texts), *(record["step"] for record in part.records)]
    return max([*ends, *told], default=-math.inf)


def _together(a: EventFile, b: EventFile) -> bool:
    if a.begin is None or b.begin is None or a.time is None or b.time is None:
        return False
    return max(a.begin, b.begin) < min(a.time, b.time)
