"""Generations: a small ring of snapshots, of which the newest that is proven healthy is never lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lightning_lr.memory import bytes_of
from lightning_lr.snapshot import Snapshot
from lightning_lr.source import Source


class Generation:
    """A snapshot with its label.

    Args:
        snapshot: the copy.
        label: the clock of each judge when it was taken.
        clock: updates that had been judged then, or at the rewind that brought it back.
        step: the place on the loggers' axis that it was taken at, before that step's update.
        size: the host memory that it takes, in bytes (where ranks have different shares, the largest), if there is a
            limit.
    """

    def __init__(self, snapshot: Snapshot, label: tuple[int, ...], clock: int, step: int, size: int) -> None:
        self.snapshot, self.label, self.clock, self.step, self.size = snapshot, label, clock, step, size

    def healthy(self, proven: tuple[int, ...]) -> bool:
        """Was it taken before everything that is not proven yet?"""
        return all(mine <= bound for mine, bound in zip(self.label, proven, strict=True))


class Generations:
    """Keeps the anchor (what the present stretch of the run began from), the newest proven one, and candidates.

    Memory is used again: a ring of `capacity` holds that many copies, made when they are first needed.

    Args:
        source: what is copied.
        capacity: the most snapshots kept, >= 2.
        limit: the most host memory for all of them together, in bytes; None: no limit.
        largest: the largest of the numbers that the ranks give, on every rank: where their shares differ, ranks must
            not decide by their own.

    Raises:
        ValueError: for a capacity below 2: the only healthy copy would have to be overwritten by an unproven one.
    """

    def __init__(
        self,
        source: Source,
        capacity: int,
        limit: int | None = None,
        largest: Callable[[int], int] = int,
    ) -> None:
        if capacity < 2:
            raise ValueError(
                f"capacity must be >= 2, got {capacity}: one healthy snapshot, and one that is to become it"
            )
        self.source, self.capacity, self.limit, self._largest = source, capacity, limit, largest
        self.room = capacity
        """How many copies there is room for: as many as `limit` has at their present size."""
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
        """The host memory that all copies take by now, on this rank."""
        return sum(generation.snapshot.bytes for generation in self._kept) + sum(s.bytes for s in self._free)

    def measure(self) -> int:
        """The bytes that a copy takes now (where ranks have different shares, the largest); sets `room` by them."""
        size = self._largest(self.source.bytes)
        if self.limit is not None:
            self.room = min(self.capacity, self.limit // max(size, 1))
        return size

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
            Whether it was taken. There is no room while all but the proven one (and the anchor) are candidates still,
            and none ever where `room` is below 2.
        """
        if self._kept and (self.newest.label, self.newest.clock) == (label, clock):
            return True  # of an update that was judged, and is judged again since something raised before it was made
        self._drop_outlived(proven, keep_anchor)
        if self._kept and len(self._kept) >= self.room:
            return False
        # without a limit, nobody asks
        size = 0 if self.limit is None else self.measure()
        self._drop_outlived(proven, keep_anchor)
        if not self._make_room(size):
            return False
        snapshot = self._free.pop() if self._free else Snapshot(self.source)
        snapshot.take()
        self._kept.append(Generation(snapshot, label, clock, step, size))
        return True

    def adopt(self, proven: tuple[int, ...]) -> bool:
        """Takes parameters that were frozen until now into every copy, as far as there is room for them.

        Returns:
            Whether any copy could take them.
        """
        size = 0 if self.limit is None else self.measure()
        for generation in self._kept:
            generation.size = max(generation.size, size)
        self.trim(proven)
        if self.limit is not None and sum(generation.size for generation in self._kept) > self.limit:
            return False
        for generation in self._kept:
            generation.snapshot.adopt()
        return True

    def trim(self, proven: tuple[int, ...]) -> None:
        """Drops copies until as few are left as is allowed; never the newest proven one, nor the last."""
        while len(self._kept) > 1 and (len(self._kept) > self.capacity or not self._make_room(0)):
            last = self._newest_healthy(proven)
            self._kept.pop(0 if last > 0 else -1)

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

    def _make_room(self, size: int) -> bool:
        """Is there room for one more of so many bytes? What is free is used for it, or dropped."""
        if self.limit is None:
            return True
        left = self.limit - size - sum(generation.size for generation in self._kept)
        while self._free and sum(s.bytes for s in self._free[: -1 if size else None]) > max(left, 0):
            self._free.pop(0)
        return left >= 0

    def _newest_healthy(self, proven: tuple[int, ...]) -> int:
        return max((i for i, g in enumerate(self._kept) if g.healthy(proven)), default=0)

    def _drop_outlived(self, proven: tuple[int, ...], keep_anchor: bool) -> None:
        last = self._newest_healthy(proven)
        # a ring too small for both gives up the anchor, never the proven one
        keep_anchor = keep_anchor and self.room > 2
        first = 1 if keep_anchor and last > 0 else 0
        self._free += [generation.snapshot for generation in self._kept[first:last]]
        del self._kept[first:last]

    def state_dict(self) -> dict[str, Any]:
        """All copies with their labels, for a checkpoint."""
        return {
            "layout": self.source.layout(),
            "kept": [[list(g.label), g.clock, g.snapshot.state_dict()] for g in self._kept],
            "steps": [g.step for g in self._kept],
        }

    def load_state_dict(self, state: dict[str, Any], proven: tuple[int, ...]) -> bool:
        """Takes up what `state_dict` gave, as many of the copies as are allowed.

        Returns:
            Whether they fit; copies of another model, or of other optimizers, are left alone.
        """
        snapshots = [Snapshot(self.source) for _ in state["kept"]]
        if state.get("layout") != self.source.layout() or not all(
            snapshot.fits(saved) for snapshot, (_, _, saved) in zip(snapshots, state["kept"], strict=True)
        ):
            return False
        self._kept = [
            Generation(snapshot, tuple(label), clock, step, bytes_of(saved))
            for snapshot, (label, clock, saved), step in zip(snapshots, state["kept"], state["steps"], strict=True)
        ]
        self.trim(proven)
        for snapshot, (_, _, saved) in zip(snapshots, state["kept"], strict=True):
            if any(generation.snapshot is snapshot for generation in self._kept):
                snapshot.load_state_dict(saved)
        return True
