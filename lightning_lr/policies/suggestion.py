"""A suggested learning rate, or the reason why there is none."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lightning_lr.saved import fields

NO_LOSS = "the loss was not finite at the first update: the data or the model is at fault, not the rate"
FELL_NOWHERE = "the loss fell at no rate before it blew up: lower min_lr, or give every rate more updates with steps"


@dataclass(frozen=True)
class Suggestion:
    """A suggested rate, or a refusal in words.

    Args:
        rate: the rate, absolute; None for a refusal.
        words: how the rate was found, or why there is none and what to do.
        sure: whether the losses leave no doubt; None if the rule can't tell.
        low: the lowest rate that can't be told from the best one, absolute; None if that isn't known.
        high: the highest one, absolute; None if that isn't known.
        share: the share of the best rate that is suggested, in (0, 1]; None if that isn't known.
    """

    rate: float | None
    words: str
    sure: bool | None = None
    low: float | None = None
    high: float | None = None
    share: float | None = None

    @property
    def refused(self) -> bool:
        """Whether there is no rate."""
        return self.rate is None

    def to_dict(self) -> dict[str, Any]:
        """A dict of plain values, for a checkpoint."""
        return {"version": 2, **asdict(self)}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Suggestion:
        """The suggestion that `to_dict` gave.

        Raises:
            SavedStateError: for a version that this release doesn't know.
        """
        return cls(**fields(saved, 2, cls))


def unbounded_words(rate: float) -> str:
    """The refusal for a curve on which no rate changed the loss."""
    return (
        f"the curve is flat: no rate up to {rate:.3g} changed the loss; "
        f"raise max_lr, or check that the loss depends on the weights"
    )


def falling_words(rate: float) -> str:
    """The refusal for a curve that still falls at its right end."""
    return f"the loss was still falling at {rate:.3g}, the highest rate tried: raise max_lr"
