"""What a sweep has seen so far, and what its next update is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lightning_lr.policies.horizon import Horizon
from lightning_lr.policies.suggestion import Suggestion
from lightning_lr.policies.tried_rates import TriedRate
from lightning_lr.saved import fields


class NextUpdate(NamedTuple):
    """What a sweep does next.

    Args:
        rate: the rate of the next update, absolute; 0 to only look at the start's weights; None when the sweep is over.
        restore: whether the start's weights must be restored before that update.
        batch: the number of its batch among those of the sweep, from 0: the same number is the same batch. None: a new
            batch, which is not used again.
        suggestion: what the sweep has found, when it is over.
    """

    rate: float | None
    restore: bool
    batch: int | None = None
    suggestion: Suggestion | None = None


@dataclass(frozen=True)
class SweepState:
    """What `SweepPolicy` remembers: plain numbers.

    Args:
        rates: the rates of all updates so far and of the one that is being made, absolute.
        losses: the losses so far, each seen before the update at the rate of the same index.
        trials: the trials that are over.
        ramp_start: the index of the ramp's first update, which follows the look at the start's weights.
        trial_start: the index of the present trial's first update; 0 before the first.
        trial_length: updates of the present trial; 0 before the first.
        blown: updates in a row whose loss was too high.
        bound: the rate that made the ramp blow up, absolute; None if none did.
        around: the rate on which a second opinion is wanted, absolute; None: a sweep over all rates.
        paired: whether a batch of the same number is the same batch.
        horizon: how long the rate must be good for.
    """

    rates: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    trials: tuple[TriedRate, ...] = ()
    ramp_start: int = 0
    trial_start: int = 0
    trial_length: int = 0
    blown: int = 0
    bound: float | None = None
    around: float | None = None
    paired: bool = True
    horizon: Horizon = field(default_factory=Horizon)

    def to_dict(self) -> dict[str, Any]:
        """A dict of numbers and lists, for a checkpoint."""
        numbers = ("ramp_start", "trial_start", "trial_length", "blown", "bound", "around", "paired")
        saved = {name: getattr(self, name) for name in numbers}
        trials = [[t.rate, t.start, t.length, None if t.losses is None else list(t.losses)] for t in self.trials]
        lists = {"rates": list(self.rates), "losses": list(self.losses), "horizon": list(self.horizon)}
        return {"version": 2, **lists, "trials": trials, **saved}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> SweepState:
        """The state that `to_dict` gave.

        Raises:
            SavedStateError: for a version that this release doesn't know.
        """
        own = fields(saved, 2, cls)
        trials = [
            TriedRate(rate, start, length, None if losses is None else tuple(losses))
            for rate, start, length, losses in own["trials"]
        ]
        lists = {"rates": tuple(own["rates"]), "losses": tuple(own["losses"]), "trials": tuple(trials)}
        return cls(**{**own, **lists, "horizon": Horizon(*own["horizon"])})
