"""A drift: a value that changes again and again in the same way, as in a warm-up or a schedule by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MANY = 3
"""More changes of a kind than this are a drift: one thing to report instead of many."""

GAP = 16
"""Small changes go together if they are at most this far apart."""

SMALL = 0.1
"""The largest small change, relative to the larger of both values."""

GROWS, SHRINKS = 2.0, 4.0
"""A large change goes with the change just before it if both have the same direction, and it is at most twice and at
least a quarter as large. So the changes of every ramp go together, but a drop doesn't go with the growth after it."""


@dataclass
class Drift:
    """Changes of one value that go together.

    Args:
        first: the value before the first change.
        before: the value before the latest change.
        last: the value since the latest change.
        start: the first change's step on the loggers' axis.
        step: the latest change's step on the loggers' axis.
        at: the time of the latest change, in updates or in steps.
        lowest: the lowest of all values, `first` and `last` included.
        highest: the highest of them.
        size: the size of the latest change, as a ratio.
        length: the number of changes so far.
        gap: the longest time between two changes.
    """

    first: float
    before: float
    last: float
    start: int
    step: int
    at: int
    lowest: float
    highest: float
    size: float
    length: int = 1
    gap: int = 1

    @classmethod
    def begin(cls, old: float, new: float, *, at: int, step: int) -> Drift:
        """Starts a drift with its first change."""
        return cls(old, old, new, step, step, at, min(old, new), max(old, new), _size(old, new))

    def takes(self, old: float, new: float, *, at: int, step: int) -> bool:
        """Adds a change if it goes with those before; returns whether it does."""
        size, gap = _size(old, new), at - self.at
        small = max(size, self.size) <= SMALL and gap <= GAP
        onward = gap <= 1 and (new > old) == (self.last > self.before)
        ramp = onward and size <= GROWS * self.size and (self.size <= SMALL or self.size <= SHRINKS * size)
        if not (small or ramp):
            return False
        self.before, self.last, self.at, self.step, self.size = old, new, at, step, size
        self.lowest, self.highest = min(self.lowest, new), max(self.highest, new)
        self.length, self.gap = self.length + 1, max(self.gap, gap)
        return True

    @property
    def running(self) -> bool:
        """Whether the changes are enough for a drift."""
        return self.length > MANY

    def over(self, at: int) -> bool:
        """Whether the next change has failed to come."""
        return at >= self.at + (self.gap if self.running else GAP)

    @property
    def facts(self) -> dict[str, Any]:
        """The entries of its record."""
        ends = {"first": self.first, "last": self.last, "lowest": self.lowest, "highest": self.highest}
        return {**ends, "changes": self.length, "start": self.start, "end": self.step}

    @property
    def words(self) -> str:
        """First and last value, and the extremes if they lie beyond both."""
        ends = (f"{self.first:.6g}", f"{self.last:.6g}")
        beyond = [("lowest", f"{self.lowest:.6g}"), ("highest", f"{self.highest:.6g}")]
        extremes = "".join(f", {which} {value}" for which, value in beyond if value not in ends)
        return f"{ends[0]} -> {ends[1]} in {self.length} changes{extremes}, steps {self.start} to {self.step}"


def _size(old: float, new: float) -> float:
    return abs(new - old) / max(abs(new), abs(old))
