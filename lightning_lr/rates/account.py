"""An account: what the ledger keeps for one optimizer, its count of updates and its param groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch.optim import Optimizer

from lightning_lr.rates.change import SCHEDULER, Part
from lightning_lr.rates.group_rate import GroupRate, Used
from lightning_lr.rates.held_rates import HeldRates
from lightning_lr.rates.listener import Listener

ROUNDING = 1e-9
"""Rates that differ by a smaller ratio count as equal, as where a factor holds a rate still against a falling base."""


class Written(NamedTuple):
    """What a param group holds for the length of a step.

    Args:
        found: what it held before: the number itself, or a tensor's value.
        base: the same as a float.
        effective: what was written.
    """

    found: Any
    base: float
    effective: float


class Account:
    """One optimizer's part of the ledger.

    Args:
        optimizer: the optimizer; what it holds under `"lr"` is read here, and written by the ledger alone.

    Attributes:
        updates: the real updates so far.
        groups: one entry for each param group.
        defaults: each source's factor and reason, for param groups that are added later.
        trial: rates that override base and factors, absolute; None: there is no trial.
        written: one entry for each param group while the effective rates are in place; None at rest.
        held: reads what the param groups hold.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.updates = 0
        self.groups: list[GroupRate] = [GroupRate() for _ in optimizer.param_groups]
        self.defaults: dict[str, tuple[float, str]] = {}
        self.trial: list[float] | None = None
        self.written: list[Written] | None = None
        self.held = HeldRates()

    def base(self, group: int) -> float:
        """The rate that the user's scheduler (or the user) set for the param group, absolute."""
        if self.written is not None and group < len(self.written):
            return self.written[group].base
        return self.held.one(self.optimizer.param_groups, group)

    def effective(self, group: int) -> float:
        """The rate that an update made now would use, absolute."""
        return self.base(group) * self.groups[group].product if self.trial is None else self.trial[group]

    def without(self, source: str, group: int) -> float:
        """The rate that the next real update would have without the source's factor, absolute."""
        return self.base(group) * self.groups[group].product / self.groups[group].factors.get(source, 1.0)

    def age(self, group: int) -> int:
        """The real updates since the param group was added."""
        return self.updates - self.groups[group].born

    def wanted(self, bases: Sequence[float]) -> Sequence[float]:
        """The effective rates of all param groups, absolute: base times factors, or the trial's."""
        if self.trial is not None:
            return self.trial
        return [base * group.product for base, group in zip(bases, self.groups, strict=True)]

    def adopt(self) -> bool:
        """Takes up added param groups and forgets removed ones; returns whether there were any."""
        groups = self.optimizer.param_groups
        if len(self.groups) == len(groups):
            return False
        del self.groups[len(groups) :]
        while len(self.groups) < len(groups):
            added = GroupRate(born=self.updates)
            for source, (factor, reason) in self.defaults.items():
                added.set(source, factor, reason)
            self.groups.append(added)
            if self.trial is not None:
                self.trial.append(self.held.one(groups, len(self.trial)))
        return True

    def count(self, written: Sequence[Written], index: int, listener: Listener) -> None:
        """Counts a real update, and reports the rates that differ from those of the update before.

        Args:
            written: what the param groups held in it.
            index: the optimizer's, for the listener.
            listener: see `Listener.rate_used`.
        """
        self.updates += 1
        for place, (group, (_, base, effective)) in enumerate(zip(self.groups, written, strict=False)):
            used = group.used
            if used is not None and math.isclose(used.effective, effective, rel_tol=ROUNDING):
                # compared with the rate last reported, so that a slow drift is reported in the end
                if used.factors == group.shares and group.told:
                    continue
                effective = used.effective
            _report(group, Used(base, group.shares, effective), index, place, listener)

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings and lists, for a checkpoint."""
        return {
            "updates": self.updates,
            "defaults": {source: list(value) for source, value in self.defaults.items()},
            "groups": [group.to_dict() for group in self.groups],
        }

    def load(self, saved: dict[str, Any], sources: set[str]) -> None:
        """Takes up what `to_dict` gave, without the factors of sources that are no longer there."""
        self.updates = saved["updates"]
        self.defaults = {s: (v[0], v[1]) for s, v in saved["defaults"].items() if s in sources}
        self.groups = [GroupRate.from_dict(group, sources) for group in saved["groups"]]
        self.adopt()


def _report(group: GroupRate, now: Used, index: int, place: int, listener: Listener) -> None:
    before, group.used, told, group.told = group.used, now, group.told, True
    if before is None:
        first = [Part(source, factor, factor, group.reasons.get(source, "")) for source, factor in now.factors]
        listener.rate_used(index, place, None, now.effective, first)
        return
    parts = []
    if before.base != now.base:
        parts.append(Part(SCHEDULER, before.base, now.base, ""))
    old, new = dict(before.factors), dict(now.factors)
    for source in sorted(old.keys() | new.keys()):
        was, is_now = old.get(source, 1.0), new.get(source, 1.0)
        if was != is_now:
            parts.append(Part(source, was, is_now, group.reasons.get(source, "")))
    if not told or parts:
        listener.rate_used(index, place, before.effective, now.effective, parts)
