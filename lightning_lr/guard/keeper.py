"""Keeper: when the guard's copies are taken, what they may take, and which of them is not proven yet."""

from __future__ import annotations

from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_lr.console import count
from lightning_lr.copies.copy_pair import CopyPair, KeptCopy
from lightning_lr.copies.host_memory import free_memory
from lightning_lr.copies.parked import cloned
from lightning_lr.copies.shares import Shares
from lightning_lr.copies.source import Source
from lightning_lr.guard.judge import Judge
from lightning_lr.internals import is_kind
from lightning_lr.policies.copy_policy import CopyPolicy
from lightning_lr.policies.divergence import PROOF
from lightning_lr.policies.verdict import Side, Verdict
from lightning_lr.shards import reshard


class Keeper:
    """Takes copies of the weights when they are due.

    Args:
        guarded: the `GuardedRun`, whose judges let weights be copied.
        source: what is copied.
        parted: whether each rank has a part of the weights or of the optimizer's state.

    Raises:
        ValueError: for a `memory_limit` in bytes below two copies.
    """

    def __init__(self, guarded: Any, source: Source, *, parted: bool) -> None:
        self._guarded, guard, trainer = guarded, guarded.guard, guarded.run.trainer
        self._device, limit = trainer.strategy.root_device, guard.memory_limit
        shares = Shares(self._device, divides=trainer.world_size > 1 and not parted, first=guard.save_snapshots)
        self.copies = CopyPair(source, limit, shares, self._largest, parted=parted)
        self.policy = CopyPolicy(None if guard.snapshot_every == "auto" else guard.snapshot_every)
        self.since = self.tried = 0
        """The clock at the start or the last rewind, and at the last copy or the last one that found no room."""
        self.unproven = 0
        """Verdicts that are to come before it is known whether the weights of the newest copy were healthy."""
        self.unlike = False
        """Whether the ranks have yet to compare what they copied."""
        self._told = False
        own, free = self.copies.measure(), free_memory() // 2 // trainer.num_devices
        self.one, least, least_free = self._largest_of(own, -own, -free)
        """The bytes of a copy at the start, on the rank where it is largest."""
        self.copies.parted = parted or least != -self.one
        self.possible = True
        """Whether there is memory for copies at all."""
        if limit == "auto":
            # the other half is for the data, for checkpoints, and for what else there is
            limit = -least_free
            self.copies.limit, self.possible = limit, 2 * self.one <= limit
        elif limit is not None and 2 * self.one > limit:
            raise ValueError(
                f"memory_limit must hold two copies of {self.one} bytes each, got {limit}: "
                f"write {guard.written(memory_limit=2 * self.one)}, or {guard.left_out}"
            )
        if not self.possible:
            self._tell_none(self.one)

    def begin(self) -> None:
        """Takes the first copy."""
        self.since, self.unproven = self._clock, 0
        self._take(promote=False)

    def copy(self) -> None:
        """Copies the weights at hand, before a batch, if a copy is due and every judge allows it.

        Nobody has seen a loss at these weights yet: the next verdict proves them, or drops the copy.
        """
        policy, judges = self._guarded.policy, self._guarded.judges
        if not self.possible or not self._due():
            return
        # an optimizer that makes few updates, or none any more, must not keep the others from having copies
        late = self._clock - self.copies.newest.clock >= PROOF * len(judges)
        active = [one for one in judges if not policy.rests(one.state)]
        if not active or not all(one.copy for one in (active if late else judges)):
            return
        if not late and any(policy.waits(one.state) for one in active):
            return
        promote = all(policy.settled(one.state, slow=late and len(judges) > 1) for one in active)
        if self._guarded.gauge.sharded:
            # after a validation
            reshard(self._guarded.module)
        if self.copies.source.notice() and not self.copies.adopt():
            self._tell_short()
        if not self._take(promote=promote):
            return
        # with lag updates are in these weights that are not judged yet
        self.unproven = 1 + sum(one.unjudged is not None for one in judges)
        for one in judges:
            one.state = policy.copied(policy.promoted(one.state) if promote else one.state)

    def prove(self, verdict: Verdict) -> None:
        """Takes up what a verdict says of the newest copy."""
        if not self.unproven or self._guarded.trial is not None:
            return
        if verdict.kind == "accept" and verdict.copy:
            self.unproven -= 1
        else:
            self._drop()

    def compare(self, numbers: dict[str, float]) -> None:
        """Checks whether the ranks hold the same. If they don't, each keeps copies of all that it has.

        Args:
            numbers: the sums of the fingerprints over the ranks.
        """
        self.unlike = False
        if not self.copies.shares.differ(numbers["copied"], numbers["squared"]):
            return
        self.copies.shares.divides, self.copies.parted = False, True
        one, limit = self.copies.measure(), self.copies.limit
        older = self._drop()
        self.possible = older or limit is None or one <= limit
        kept = "each keeps whole copies from here on" if self.possible else "copies would have to be whole"
        rank_zero_warn(
            f"{self._guarded.name}: the ranks don't hold the same weights or the same optimizer state, so {kept}, "
            f"{one / 2**20:.3g} MiB each"
        )
        if not older:
            self.copies.clear()
            if not self.possible:
                self._tell_none(one)
            self._guarded.begin_copies()

    def adopt(self, judge: Judge) -> None:
        """Takes parameters that an optimizer has gained into the copies."""
        now = self._guarded.gauge.count(judge.index)
        if now > judge.trained and not self.copies.adopt():
            self._tell_short()
        judge.trained = now

    def restore(self, to: Side, clock: int) -> KeptCopy:
        """Gives a copy back before the update after this clock."""
        self.since = self.tried = clock
        self.unproven, self.unlike = 0, False
        return self.copies.restore(to, clock)

    def saved(self) -> dict[str, Any] | None:
        """The copies, on the rank that has them whole, for a checkpoint: they are the copies' own, and not cloned."""
        copies = self.copies
        if copies.freed or not len(copies) or (copies.shares.divides and copies.shares.rank > 0):
            return None
        held = copies.state_dict()
        # written in a thread of its own, when the next copy may have been taken
        return cloned(held) if is_kind(self._guarded.run.trainer.strategy.checkpoint_io, "AsyncCheckpointIO") else held

    def state_dict(self) -> dict[str, Any]:
        """The clocks; not the copies."""
        return {"since": self.since, "tried": self.tried, "unproven": self.unproven}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self.since, self.tried, self.unproven = saved["since"], saved["tried"], saved["unproven"]

    @property
    def _clock(self) -> int:
        return self._guarded.record.counts["judged"]

    def _due(self) -> bool:
        newest, clock = self.copies.newest, self._clock
        last = max(newest.clock, self.tried)
        return self.policy.due(clock=clock, last=last, since=clock - self.since, size=newest.size)

    def _take(self, *, promote: bool) -> bool:
        """Takes a copy, if there is room."""
        self.tried = self._clock
        step, lost = self._guarded.run.journal.step, self._guarded.record.counts["lost"]
        if not self.copies.take(self._clock, step, lost, promote=promote):
            self._tell_short()
            return False
        self.unlike = self.copies.shares.divides
        return True

    def _drop(self) -> bool:
        """The newest copy is of no use; False where there is no other."""
        self.unproven = 0
        if not self.copies.take_back():
            return False
        # another is due as soon as a verdict lets it be taken
        self.tried = self.copies.newest.clock
        for one in self._guarded.judges:
            one.state = self._guarded.policy.dropped(one.state)
        return True

    def _tell_none(self, one: int) -> None:
        """Two copies are more than a process may take."""
        half = " (half of what is free)" if self._guarded.guard.memory_limit == "auto" else ""
        rank_zero_warn(
            f"{self._guarded.name}: two copies take {2 * one} bytes of host memory on each rank, and a process may "
            f"take {self.copies.limit}{half}, so it makes no copies: it still limits and drops updates, but can't "
            f"run trials, and it ends the run where the weights are not finite. If there is more room than it seems "
            f"write {self._guarded.guard.written(memory_limit=2 * one)}"
        )

    def _tell_short(self) -> None:
        """Two copies are more than is allowed by now."""
        if self._told:
            return
        self._told = True
        one, age = self.copies.measure(), self._clock - self.copies.newest.clock
        rank_zero_warn(
            f"{self._guarded.name}: a copy takes {one} bytes of host memory by now, and two of them are more than "
            f"memory_limit={self.copies.limit}: it takes no more copies, and a rewind goes back to one that it "
            f"has (the newest is {count(age, 'update')} old), so that a rewind may lose a lot. For two copies write "
            f"{self._guarded.guard.written(memory_limit=2 * one)}"
        )

    def _largest(self, number: int) -> int:
        """The largest of the numbers that the ranks have, on every rank."""
        return self._largest_of(number)[0]

    def _largest_of(self, *numbers: int) -> list[int]:
        """Of each number the largest that the ranks have; one collective."""
        mine = torch.tensor(numbers, device=self._device)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(mine, torch.distributed.ReduceOp.MAX)
        return mine.tolist()
