"""Generations: a small ring of snapshots, of which the newest that is proven healthy is never lost."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_lr.snapshot import Snapshot, Source


class Generation:
    """A snapshot with its label.

    Args:
        snapshot: the copy.
        label: the clock of each judge when it was taken.
        clock: updates that had been judged then, or at the rewind that brought it back.
        step: the place on the loggers' axis that it was taken at, before that step's update.
    """

    def __init__(self, snapshot: Snapshot, label: tuple[int, ...], clock: int, step: int = 0) -> None:
        self.snapshot, self.label, self.clock, self.step = snapshot, label, clock, step

    def healthy(self, proven: tuple[int, ...]) -> bool:
        """Was it taken before everything that is not proven yet?"""
        return all(mine <= bound for mine, bound in zip(self.label, proven, strict=True))


class Generations:
    """Keeps the anchor (what the present stretch of the run began from), the newest proven one, and candidates.

    Memory is used again: a ring of `capacity` holds that many copies, made when they are first needed.

    Args:
        source: what is copied.
        capacity: the most snapshots kept, >= 2.

    Raises:
        ValueError: for a capacity below 2: the only healthy copy would have to be overwritten by an unproven one.
    """

    def __init__(self, source: Source, capacity: int) -> None:
        if capacity < 2:
            raise ValueError(
                f"capacity must be >= 2, got {capacity}: one healthy snapshot, and one that is to become it"
            )
        self.source, self.capacity = source, capacity
        self._kept: list[Generation] = []
        self._free: list[Snapshot] = []

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def newest(self) -> Generation:
        return self._kept[-1]

    @property
    def anchor(self) -> Generation:
        return self._kept[0]

    @property
    def bytes(self) -> int:
        """The host memory that all copies take by now."""
        return sum(generation.snapshot.bytes for generation in self._kept) + sum(s.bytes for s in self._free)

    def take(
        self, label: tuple[int, ...], clock: int, proven: tuple[int, ...], step: int = 0, *, keep_anchor: bool
    ) -> bool:
        """Takes a snapshot if there is room for one.

        Args:
            label: the clock of each judge.
            clock: updates judged so far.
            proven: up to which clocks of the judges weights are proven healthy.
            step: the present place on the loggers' axis.
            keep_anchor: whether the oldest must stay although a newer one is proven.

        Returns:
            Whether it was taken. There is no room while all but the proven one (and the anchor) are candidates still.
        """
        if self._kept and (self.newest.label, self.newest.clock) == (label, clock):
            return True  # of an update that was judged, and is judged again since something raised before it was made
        self._drop_outlived(proven, keep_anchor)
        if len(self._kept) >= self.capacity:
            return False
        snapshot = self._free.pop() if self._free else Snapshot(self.source)
        snapshot.take()
        self._kept.append(Generation(snapshot, label, clock, step))
        return True

    def adopt(self) -> None:
        """Takes parameters that were frozen until now into every copy."""
        for generation in self._kept:
            generation.snapshot.adopt()

    def rewind(self, proven: tuple[int, ...], clock: int) -> Generation:
        """Gives back the newest proven generation (the oldest, if none is) and drops all that came after it."""
        target = next((g for g in reversed(self._kept) if g.healthy(proven)), self._kept[0])
        target.snapshot.restore()
        while self._kept[-1] is not target:
            self._free.append(self._kept.pop().snapshot)
        self._free += [generation.snapshot for generation in self._kept[:-1]]
        self._kept = [target]
        target.clock = clock
        return target

    def change(self, *, anchor: bool) -> tuple[Tensor, ...]:
        """Squared distance to the newest, its squared norm, and with `anchor` the same for it: shares of this rank."""
        newest = self.newest.snapshot.change()
        if not anchor:
            return newest
        return (*newest, *(newest if self.anchor is self.newest else self.anchor.snapshot.change()))

    def _drop_outlived(self, proven: tuple[int, ...], keep_anchor: bool) -> None:
        last = max((i for i, g in enumerate(self._kept) if g.healthy(proven)), default=0)
        # a ring too small for both gives up the anchor, never the proven one
        keep_anchor = keep_anchor and self.capacity > 2
        first = 1 if keep_anchor and last > 0 else 0
        self._free += [generation.snapshot for generation in self._kept[first:last]]
        del self._kept[first:last]

    def state_dict(self) -> dict[str, Any]:
        """All copies with their labels, for a checkpoint."""
        return {
            "kept": [[list(g.label), g.clock, g.snapshot.state_dict()] for g in self._kept],
            "steps": [g.step for g in self._kept],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self._kept = []
        for (label, clock, saved), step in zip(state["kept"], state["steps"], strict=True):
            snapshot = Snapshot(self.source)
            snapshot.load_state_dict(saved)
            self._kept.append(Generation(snapshot, tuple(label), clock, step))
