"""A change of one rate, and the parts that it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

SCHEDULER = "scheduler"
"""The source of a change that came from the base rate: the user's scheduler, or the user's own hand."""


@dataclass(frozen=True)
class RateChange:
    """One change of one effective rate, recorded at the update that it first applies to.

    Args:
        step: the update's place on the loggers' axis; the first batch that steps is 0.
        optimizer: the optimizer's name as `LearningRateMonitor` writes it, without `lr-` (or its scheduler's `name`).
        group: the param group's `name`, or `pg1`, `pg2`, ...; empty for an optimizer's only group if it has no `name`.
            The two make up the tag: `lr-<optimizer>` or `lr-<optimizer>/<group>`.
        old: the effective rate of the update before, absolute.
        new: the effective rate of this update, absolute.
        cause: who changed it and why, in words.
    """

    step: int
    optimizer: str
    group: str
    old: float
    new: float
    cause: str


class Part(NamedTuple):
    """One source's share in a change: the base rate's (absolute) or a factor's (a ratio), before and after."""

    source: str
    old: float
    new: float
    reason: str

    @property
    def words(self) -> str:
        """The part as a line has it: `Warmup 0.2 -> 0.4: linear, update 2 of 5`."""
        share = f"{self.source} {self.old:.6g} -> {self.new:.6g}"
        return f"{share}: {self.reason}" if self.reason else share
