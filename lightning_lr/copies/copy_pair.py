"""CopyPair: two copies, the best and the newest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_lr.copies.optimizer_memory import bytes_of
from lightning_lr.copies.shares import Shares
from lightning_lr.copies.snapshot import Snapshot
from lightning_lr.copies.source import Live, Source
from lightning_lr.shards import local


class KeptCopy:
    """A snapshot, and when it was taken.

    Args:
        snapshot: the copy.
        clock: updates that had been judged then, or at the last rewind to it.
        step: the place on the loggers' axis that it was taken at, before that step's update.
        lost: updates that had been lost then, or at the last rewind to it.
        promoted: whether the copy before it became the best when it was taken.
        size: the host memory that it takes, in bytes (where ranks have different shares, the largest).
    """

    def __init__(
        self, snapshot: Snapshot, clock: int, step: int, lost: int = 0, promoted: bool = True, size: int = 0
    ) -> None:
        self.snapshot, self.clock, self.step, self.lost = snapshot, clock, step, lost
        self.promoted, self.size = promoted, size


class CopyPair:
    """Keeps the best copy and the newest, which may be the same one. Memory is reused.

    Args:
        source: what is copied.
        limit: the most host memory for both together, in bytes; None: no limit.
        shares: how ranks divide the copies; None: each keeps all.
        largest: returns, on every rank, the largest of the numbers that the ranks give it: ranks must decide alike.
        parted: whether the ranks' copies differ in size; otherwise they compare sizes only while there are lists,
            which may grow unequally.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(1, 1)
        >>> pair = CopyPair(Source([layer], []))
        >>> pair.take(0, 0)
        True
        >>> pair.best is pair.newest
        True
        >>> pair.take(5, 5)
        True
        >>> (pair.best.step, pair.newest.step)
        (0, 5)
    """

    def __init__(
        self,
        source: Source,
        limit: int | None = None,
        shares: Shares | None = None,
        largest: Callable[[int], int] = int,
        *,
        parted: bool = False,
    ) -> None:
        self.source, self.limit, self._largest, self.parted = source, limit, largest, parted
        self.shares = shares or Shares(torch.device("cpu"))
        self.freed = False
        """Whether their memory is gone."""
        self._best: KeptCopy | None = None
        self._newest: KeptCopy | None = None
        self._free: Snapshot | None = None

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def best(self) -> KeptCopy:
        assert self._best is not None
        return self._best

    @property
    def newest(self) -> KeptCopy:
        assert self._newest is not None
        return self._newest

    @property
    def kept(self) -> list[KeptCopy]:
        """The copies, each once; the best is the first."""
        found = [copy for copy in (self._best, self._newest) if copy is not None]
        return found[:1] if self._best is self._newest else found

    @property
    def bytes(self) -> int:
        """The host memory that all copies take by now, on this rank."""
        free = 0 if self._free is None else self._free.bytes
        return sum(copy.snapshot.bytes for copy in self.kept) + free

    def measure(self) -> int:
        """The bytes that a copy takes now (where ranks have different shares, the largest)."""
        return self._measured(self.source.live())

    def take(self, clock: int, step: int, lost: int = 0, *, promote: bool = False) -> bool:
        """Takes the newest copy, over the one before.

        Args:
            clock: updates judged so far.
            step: the present place on the loggers' axis.
            lost: updates lost so far.
            promote: whether the one before becomes the best.

        Returns:
            Whether it was taken: there must be room for it beside the best.
        """
        self.source.settle()
        live = self.source.live()
        size = self._measured(live)
        first = self._newest is None
        kept = self._newest if promote or self._best is None else self._best
        if self.limit is not None and size + (0 if kept is None else kept.size) > self.limit:
            return False
        if promote:
            self.promote()
        if self._newest is not None and self._newest is not self._best:
            snapshot = self._newest.snapshot
        else:
            snapshot, self._free = self._free or Snapshot(self.source, self.shares), None
        snapshot.take(live)
        self._newest = KeptCopy(snapshot, clock, step, lost, promote or first, size)
        if first:
            self._best = self._newest
        return True

    def promote(self) -> None:
        """The newest becomes the best; the memory of the best before is free."""
        if self._best is not None and self._best is not self._newest:
            self._free = self._best.snapshot
        self._best = self._newest

    def take_back(self) -> bool:
        """The newest copy turned out to be of no use; False where there is no other."""
        if self._newest is self._best or self._newest is None:
            return False
        self._free, self._newest = self._newest.snapshot, self._best
        return True

    def notice_resets(self) -> None:
        """Before each batch: forgets what was copied of torchmetrics that have been reset since."""
        for name in self.source.resets():
            for copy in self.kept:
                copy.snapshot.forget_metric(name)

    def fence(self) -> None:
        """To be called before what is copied is written: see `Snapshot.fence`."""
        for copy in self.kept:
            copy.snapshot.fence()

    def clear(self) -> None:
        """Lets go of all copies."""
        for snapshot in [*(copy.snapshot for copy in self.kept), self._free]:
            if snapshot is not None:
                snapshot.free()
        self._best = self._newest = self._free = None

    def free(self) -> None:
        """Gives all memory back; when the copies were taken stays known."""
        best, newest = self._best, self._newest
        self.clear()
        self._best, self._newest, self.freed = best, newest, True

    def adopt(self) -> bool:
        """Takes parameters that were frozen until now into every copy, as far as there is room for them.

        Returns:
            Whether the copies could take them.
        """
        if self.limit is not None:
            size = self.measure()
            if size * len(self.kept) > self.limit:
                return False
            for copy in self.kept:
                copy.size = max(copy.size, size)
            if self._free is not None:
                self._free.free()
                self._free = None
        for copy in self.kept:
            copy.snapshot.adopt()
        return True

    def get(self, which: str) -> KeptCopy:
        """`best` or `newest`."""
        return self.newest if which == "newest" else self.best

    def restore(self, which: str, clock: int) -> KeptCopy:
        """Gives a copy back. After the best one it is the newest too; the newest leaves the best as it is."""
        target = self.get(which)
        self.fence()
        target.snapshot.restore()
        if target is self._best and self._newest is not target and self._newest is not None:
            self._free = self._newest.snapshot
            self._newest = target
        target.clock = clock
        return target

    def state_dict(self) -> dict[str, Any]:
        """All copies, for a checkpoint."""
        self.notice_resets()
        return {
            "layout": self.source.layout(),
            "kept": [[copy.clock, copy.lost, copy.promoted, copy.snapshot.state_dict()] for copy in self.kept],
            "steps": [copy.step for copy in self.kept],
        }

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Takes up what `state_dict` gave; if there is no room for both copies, the best alone.

        Returns:
            Whether they fit; copies of another model, or of other optimizers, are left alone.
        """
        saved = state["kept"]
        sizes = [self._size(entry[-1]["tensors"], entry[-1]["plain"]) for entry in saved]
        if self.limit is not None and sum(sizes) > self.limit:
            saved = saved[:1]
        snapshots = [Snapshot(self.source, self.shares) for _ in saved]
        pairs = list(zip(snapshots, saved, strict=True))
        if state["layout"] != self.source.layout() or not all(s.fits(entry[-1]) for s, entry in pairs):
            return False
        for snapshot, entry in pairs:
            snapshot.load_state_dict(entry[-1])
        made = []
        for (snapshot, (clock, lost, promoted, _)), step, size in zip(pairs, state["steps"], sizes, strict=False):
            made.append(KeptCopy(snapshot, clock, step, lost, promoted, size))
        self._best, self._newest, self._free = made[0], made[-1], None
        return True

    def _measured(self, live: Live) -> int:
        size = self._size({key: local(tensor.detach()) for key, tensor in live.tensors.items()}, live.plain)
        return self._largest(size) if self.parted or live.uneven else size

    def _size(self, tensors: dict[str, Tensor], plain: Any) -> int:
        """The bytes that a rank keeps of them at most."""
        if not self.shares.divides:
            return bytes_of([tensors, plain])
        return sum(kept.bytes for kept in self.shares.plan(tensors, rank=0).values()) + bytes_of(plain)
