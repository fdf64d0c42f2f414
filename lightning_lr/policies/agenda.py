"""Agenda: at which updates and epochs something is due, each of them once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning_lr.saved import fields


@dataclass(frozen=True)
class AgendaState:
    """What has been done.

    Args:
        done: the places that are over, in words.
        requested: a reason why it is due at the next occasion; None: nobody asked.
    """

    done: tuple[str, ...] = ()
    requested: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """A dict of plain values, for a checkpoint."""
        return {"version": 1, "done": list(self.done), "requested": self.requested}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> AgendaState:
        """The state that `to_dict` gave.

        Raises:
            SavedStateError: for a version that this release doesn't know.
        """
        own = fields(saved, 1, cls)
        return cls(tuple(own["done"]), own["requested"])


@dataclass(frozen=True)
class Agenda:
    """Says when something is due: at given updates, at the start of given epochs, and on request.

    A place that was passed over (a resumed run, an update within a window of accumulation) is due at once; several such
    places are one occasion.

    Args:
        updates: counted from 0.
        epochs: counted from 0.

    Example:
        >>> agenda, state = Agenda((0, 500)), AgendaState()
        >>> state, why = agenda.step(state, update=0, epoch=0)
        >>> why
        'asked for at=0'
        >>> agenda.step(state, update=499, epoch=3)[1]
        ''
    """

    updates: tuple[int, ...] = ()
    epochs: tuple[int, ...] = ()

    def step(self, state: AgendaState, *, update: int, epoch: int) -> tuple[AgendaState, str]:
        """Asks at the begin of an update.

        Args:
            state: what came out of the step before.
            update: the updates made so far.
            epoch: the present epoch.

        Returns:
            The new state, and why it is due now, in words; empty when it is not.
        """
        reached = {update_place(at): f"at={at}" for at in self.updates if at <= update}
        reached.update((epoch_place(at), f"epochs={at}") for at in self.epochs if at <= epoch)
        due = [place for place in reached if place not in state.done]
        words = [f"asked for {', '.join(reached[place] for place in due)}"] if due else []
        why = ", ".join(words if state.requested is None else [*words, state.requested])
        return (replace(state, done=(*state.done, *due), requested=None) if why else state), why


def update_place(at: int) -> str:
    """The name of a place before an update."""
    return f"update {at}"


def epoch_place(at: int) -> str:
    """The name of a place at the start of an epoch."""
    return f"epoch {at}"


def places(name: str, given: int | Sequence[int] | None) -> tuple[int, ...]:
    """One place or several as a tuple.

    Raises:
        ValueError: for what is no whole number >= 0.
    """
    found = () if given is None else tuple(given) if isinstance(given, Sequence) else (given,)
    for place in found:
        if isinstance(place, bool) or not isinstance(place, int) or place < 0:
            raise ValueError(f"{name} must be whole numbers >= 0, got {given!r}: they count from the run's start")
    return found
