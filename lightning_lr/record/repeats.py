"""Repeats: of things that happen again and again, the first few are told, and the others counted."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

TOLD = 3
"""Of one kind so many are told one by one."""

QUIET = 200
"""After so many steps without another one the count is told, and the next one is new again."""


@dataclass
class _Repeat:
    more: str
    warn: bool
    step: int
    told: int = 0
    counted: int = 0
    start: int = 0
    last: str = ""

    def summary(self) -> str:
        one = self.counted == 1
        steps = f"step {self.step}" if one else f"steps {self.start} to {self.step}"
        line = f"{self.more} {self.counted} more like this, {steps} ({'' if one else 'last: '}{self.last})"
        self.counted = 0
        return line


class Repeats:
    """Tells which of the things that happen are told, and what is said of the others."""

    def __init__(self) -> None:
        self._kinds: dict[Hashable, _Repeat] = {}

    def add(self, kind: Hashable, step: int, more: str, last: str, *, warn: bool) -> int:
        """Notes that something has happened.

        Args:
            kind: equal for things that are told as one.
            step: its place on the loggers' axis.
            more: the first words of the line about those that are counted only: `<more> 47 more like this`.
            last: its numbers, in words.
            warn: whether that line is a warning.

        Returns:
            How many of its kind have been told, this one included; 0 when this one is not to be told.
        """
        repeat = self._kinds.setdefault(kind, _Repeat(more, warn, step))
        repeat.step = step
        if repeat.told < TOLD:
            repeat.told += 1
            return repeat.told
        repeat.start = repeat.start if repeat.counted else step
        repeat.counted, repeat.last, repeat.more = repeat.counted + 1, last, more
        return 0

    def due(self, step: int) -> Iterator[tuple[str, bool]]:
        """The lines about kinds that have been quiet for long, and whether each is a warning; they are forgotten."""
        for kind in [kind for kind, repeat in self._kinds.items() if step - repeat.step >= QUIET]:
            repeat = self._kinds.pop(kind)
            if repeat.counted:
                yield repeat.summary(), repeat.warn

    def all(self) -> Iterator[tuple[str, bool]]:
        """The lines about everything that was counted and not told, and whether each is a warning."""
        for repeat in self._kinds.values():
            if repeat.counted:
                yield repeat.summary(), repeat.warn
