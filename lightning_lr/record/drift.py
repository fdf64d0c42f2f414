"""Drift: a value that changes again and again in the same way, as under a warm-up or a schedule by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MANY = 3
"""More changes of a kind than this are a drift: one thing to tell, and no longer many."""

GAP = 16
"""Small changes at most so far apart go together."""

SMALL = 0.1
"""A small change, as a ratio to the value before."""

GROWS, SHRINKS = 2.0, 4.0
"""A large change goes together with the one just before it if both lead the same way, and it is no more than twice as
large, and no less than a quarter: so do those of every ramp, but not a drop with the growth that follows it."""


@dataclass
class Drift:
    """Changes of one value that go together.

    Args:
        first: the value before the first of them.
        before: the value before the latest.
        last: the value since then.
        start: the loggers' step of the first.
        step: the loggers' step of the latest.
        at: when the latest came, on the clock by which they are told apart (updates, or steps).
        lowest: of all values, `first` and `last` among them.
        highest: the same.
        size: of the latest change, as a ratio.
        length: the changes so far.
        gap: the longest time between two of them.
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
        """With its first change."""
        return cls(old, old, new, step, step, at, min(old, new), max(old, new), _size(old, new))

    def takes(self, old: float, new: float, *, at: int, step: int) -> bool:
        """Adds a change that goes together with the ones before; False for one that does not."""
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
        """Has it become one thing?"""
        return self.length > MANY

    def over(self, at: int) -> bool:
        """Has the next change failed to come?"""
        return at >= self.at + (self.gap if self.running else GAP)

    @property
    def facts(self) -> dict[str, Any]:
        """What its record says."""
        ends = {"first": self.first, "last": self.last, "lowest": self.lowest, "highest": self.highest}
        return {**ends, "changes": self.length, "start": self.start, "end": self.step}

    @property
    def words(self) -> str:
        """From where to where, and what lay beyond both."""
        ends = (f"{self.first:.6g}", f"{self.last:.6g}")
        beyond = [("lowest", f"{self.lowest:.6g}"), ("highest", f"{self.highest:.6g}")]
        extremes = "".join(f", {which} {value}" for which, value in beyond if value not in ends)
        return f"{ends[0]} -> {ends[1]} in {self.length} changes{extremes}, steps {self.start} to {self.step}"


def _size(old: float, new: float) -> float:
    return abs(new - old) / max(abs(new), abs(old))
