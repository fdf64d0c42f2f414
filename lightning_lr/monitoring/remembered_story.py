"""A remembered story: the story of the last fit, from memory and without event files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_lr.record.curves import FACTOR
from lightning_lr.record.journal import Journal
from lightning_lr.record.series import Series
from lightning_lr.story import Tags, health_of
from lightning_lr.story.derived import groups_told


class RememberedStory:
    """The story of a fit, with the same names as `lightning_lr.story.Story`, to be drawn or summed up.

    Args:
        journal: the fit's journal.
        rates: the tags of the rates.
        factors: the names of the callbacks that have a factor.
        losses: the losses, by name.
    """

    structured = True

    def __init__(
        self, journal: Journal, rates: Sequence[str], factors: Sequence[str], losses: Mapping[str, Series]
    ) -> None:
        self.records = self.valid = list(journal.records.kept)
        self._series = {**journal.curves.series, **losses}
        own = [tag for tag in self._series if tag.startswith(FACTOR)]
        self.tags = Tags(rates=[tag for tag in rates if tag in self._series], factors=own, losses=list(losses))
        self.factors = list(factors)
        self.groups = list(groups_told(self.records).values())
        self.end = next((record for record in reversed(self.records) if record["kind"] == "end"), None)
        self.writing = self.end is None

    @property
    def has_data(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.tags.rates)

    def series(self, tag: str) -> tuple[Any, Any]:
        """Steps, int64, and values, float64, shape (n,) each; empty for an unknown tag."""
        return self._series.get(tag, Series()).points()

    @property
    def first_step(self) -> int | None:
        """The first step of which anything is known."""
        return min(self._ends(0), default=None)

    @property
    def last_step(self) -> int | None:
        """The last step of which anything is known."""
        return max(self._ends(-1), default=None)

    @property
    def sentence(self) -> str:
        """How the run is doing, in one sentence."""
        story: Any = self
        return health_of(story).sentence

    def _ends(self, at: int) -> list[int]:
        ends = [record["step"] for record in self.records]
        for tag in (*self.tags.rates, *self.tags.factors, *self.tags.losses):
            steps, _ = self.series(tag)
            ends += [int(steps[at])] if len(steps) else []
        return ends
