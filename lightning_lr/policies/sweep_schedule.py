"""The schedule of a finder: at which updates and epochs it sweeps, once at each of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

from lightning_lr.saved import fields

AT_START = "at the start"
"""The words for update 0 if nobody asked for it."""


@dataclass(frozen=True)
class SweepScheduleState:
    """Which places of a schedule are over.

    Args:
        done: the places that are over, in words.
        requested: why a sweep is due at the next occasion, in words; None: nobody asked.
    """

    done: tuple[str, ...] = ()
    requested: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """A dict of plain values, for a checkpoint."""
        return {"version": 1, "done": list(self.done), "requested": self.requested}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> SweepScheduleState:
        """The state that `to_dict` gave.

        Raises:
            SavedStateError: for a version that this release doesn't know.
        """
        own = fields(saved, 1, cls)
        return cls(tuple(own["done"]), own["requested"])


@dataclass(frozen=True)
class SweepSchedule:
    """Says when a sweep is due: before given updates, at the start of given epochs, and on request.

    A place that was passed over (in a resumed run, or within a window of accumulation) is due at once; several such
    places are one occasion.

    Args:
        updates: counted from 0.
        epochs: counted from 0.
        unasked: whether nobody asked for update 0.

    Example:
        >>> schedule, state = SweepSchedule((0, 500)), SweepScheduleState()
        >>> state, why = schedule.step(state, update=0, epoch=0)
        >>> why
        'asked for at=0'
        >>> schedule.step(state, update=499, epoch=3)[1]
        ''
    """

    updates: tuple[int, ...] = ()
    epochs: tuple[int, ...] = ()
    unasked: bool = False

    @property
    def words(self) -> dict[str, str]:
        """All places by name, as the user wrote them, or `AT_START`."""
        updates = {update_place(at): f"at={at}" for at in self.updates}
        if self.unasked:
            updates[update_place(0)] = AT_START
        return {**updates, **{epoch_place(at): f"epochs={at}" for at in self.epochs}}

    def step(self, state: SweepScheduleState, *, update: int, epoch: int) -> tuple[SweepScheduleState, str]:
        """Asks at the start of an update.

        Args:
            state: the state that the step before returned.
            update: the updates made so far.
            epoch: the present epoch.

        Returns:
            The new state, and why a sweep is due now, in words; empty if none is.
        """
        reached = [update_place(at) for at in self.updates if at <= update]
        reached += [epoch_place(at) for at in self.epochs if at <= epoch]
        due = [place for place in reached if place not in state.done]
        words = [listed((self.words[place] for place in due), "asked for")] if due else []
        why = ", ".join(words if state.requested is None else [*words, state.requested])
        return (replace(state, done=(*state.done, *due), requested=None) if why else state), why


def update_place(at: int) -> str:
    """The name of a place before an update."""
    return f"update {at}"


def epoch_place(at: int) -> str:
    """The name of a place at the start of an epoch."""
    return f"epoch {at}"


def listed(words: Iterable[str], preposition: str = "for") -> str:
    """Places in words; `AT_START` is one that nobody asked for.

    Example:
        >>> listed(["at=0", "epochs=3"]), listed([AT_START, "epochs=3"], "asked for")
        ('for at=0, epochs=3', 'at the start, asked for epochs=3')
    """
    words = list(words)
    asked = ", ".join(word for word in words if word != AT_START)
    return ", ".join([AT_START] * (AT_START in words) + [f"{preposition} {asked}"] * bool(asked))


def places(name: str, given: int | Sequence[int] | None) -> tuple[int, ...]:
    """One place or several as a tuple.

    Raises:
        ValueError: for an empty sequence, and for anything but whole numbers >= 0.
    """
    found = () if given is None else tuple(given) if isinstance(given, Sequence) else (given,)
    if given is not None and not found:
        raise ValueError(f"{name} must have at least one number, got {given!r}: for none write {name}=None")
    for place in found:
        if isinstance(place, bool) or not isinstance(place, Integral) or place < 0:
            raise ValueError(f"{name} must be whole numbers >= 0, got {given!r}: they count from the run's start")
    return tuple(int(place) for place in found)
