"""Repeats: of things that happen again and again the first few are told, and the others counted."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

TOLD = 3
"""How many of one kind are told one by one."""

QUIET = 200
"""Steps without another one, after which the count is told, and the next one is new again."""


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
    """Decides what is told, and sums up what is only counted."""

    def __init__(self) -> None:
        self._kinds: dict[Hashable, _Repeat] = {}

    def add(self, kind: Hashable, step: int, more: str, last: str, *, warn: bool) -> int:
        """Notes that something has happened.

        Args:
            kind: equal for things that are counted together.
            step: its place on the loggers' axis.
            more: the beginning of the line about those that are only counted: `<more> 47 more like this`.
            last: this one's numbers, in words.
            warn: whether that line is a warning.

        Returns:
            How many of its kind were told, this one included; 0 when this one is only counted.
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
        """The lines about kinds that have been quiet for long, each with whether it is a warning; forgets them."""
        for kind in [kind for kind, repeat in self._kinds.items() if step - repeat.step >= QUIET]:
            repeat = self._kinds.pop(kind)
            if repeat.counted:
                yield repeat.summary(), repeat.warn

    def all(self) -> Iterator[tuple[str, bool]]:
        """The lines about everything that was only counted, each with whether it is a warning."""
        for repeat in self._kinds.values():
            if repeat.counted:
                yield repeat.summary(), repeat.warn
