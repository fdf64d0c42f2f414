"""A group rate: what the ledger keeps for one param group."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Used(NamedTuple):
    """What the last update of a param group was made with."""

    base: float
    factors: tuple[tuple[str, float], ...]
    effective: float


@dataclass
class GroupRate:
    """What the ledger keeps for one param group.

    Args:
        born: the optimizer's count of real updates when the param group was added.
        factors: each source's factor, a ratio >= 0; a missing source counts as 1.
        reasons: each source's reason for its present factor, in words.
        used: what the last update was made with; None before the first.
        told: whether the listener has heard of this param group in this run.
        product: all factors multiplied, a ratio >= 0.
        shares: the factors, sorted by source.
    """

    born: int = 0
    factors: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    used: Used | None = None
    told: bool = False
    product: float = 1.0
    shares: tuple[tuple[str, float], ...] = ()

    def set(self, source: str, factor: float, reason: str) -> None:
        """Sets a source's factor, and why it has this value."""
        if factor == 1.0:
            self.factors.pop(source, None)
        else:
            self.factors[source] = factor
        self.reasons[source] = reason
        self.shares = tuple(sorted(self.factors.items()))
        self.product = 1.0
        for _, share in self.shares:
            self.product *= share

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings and lists, for a checkpoint."""
        used = self.used
        return {
            "born": self.born,
            "factors": {s: [self.factors.get(s, 1.0), self.reasons[s]] for s in sorted(self.reasons)},
            "used": None if used is None else [used.base, [list(f) for f in used.factors], used.effective],
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any], sources: set[str]) -> GroupRate:
        """Reads what `to_dict` gave, without the factors of sources that are no longer there."""
        rate = cls(born=saved["born"])
        if saved["used"] is not None:
            base, factors, effective = saved["used"]
            rate.used = Used(base, tuple((source, factor) for source, factor in factors), effective)
        for source, (factor, reason) in saved["factors"].items():
            if source in sources:
                rate.set(source, factor, reason)
        return rate
