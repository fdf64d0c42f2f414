"""Guarded: what a guard has within one run, how it begins, and how it is saved."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_lr.buffers import Buffers
from lightning_lr.callbacks.incidents import Incidents
from lightning_lr.callbacks.judge import Ground, Judge, finish, finite, judges_of
from lightning_lr.callbacks.keeper import Keeper
from lightning_lr.callbacks.run import Run
from lightning_lr.callbacks.tryout import Tryout
from lightning_lr.console import count
from lightning_lr.generations import Generations
from lightning_lr.internals import averaged_models, scaler_in_use
from lightning_lr.memory import parted
from lightning_lr.policies.divergence import PROOF
from lightning_lr.shards import reshard
from lightning_lr.signals import LossMeter
from lightning_lr.source import Source

ENTRIES = ("states", "judges", "jobs", "buffers", "keeper", "generations", "trial", "flags", "record")
"""Of a guard's saved state; `flags` are `given_up` and the last epoch of which a batch has counted."""


def readable(saved: dict[str, Any], policy: Any) -> dict[str, Any]:
    """A guard's saved state, if it is one of this release.

    Raises:
        LookupError, TypeError, ValueError: if not.
    """
    if saved.keys() != set(ENTRIES):
        raise LookupError(f"other entries: {', '.join(sorted(saved.keys() ^ set(ENTRIES)))}")
    judges_of(saved, type(policy.start()))
    _, _ = saved["flags"]
    return saved


class Guarded:
    """The judges of one run's optimizers, with the copies and the trial that they share.

    Args:
        guard: the callback: its name, its policy and its arguments.
        run: the run.
        module: the model.
        judges: those of optimizers that these have replaced.
        saved: what `state_dict` gave.

    Raises:
        ValueError: for a `memory_limit` below two copies.
    """

    def __init__(self, guard: Any, run: Run, module: Any, judges: list[Judge], saved: dict[str, Any] | None) -> None:
        self._guard, self._run, self._module = guard, run, module
        self.name, self.policy, self.lag = guard.name, guard.policy, guard.lag
        self.record: Incidents = guard.record
        self.given_up = self._blind = self._warned = False
        self.take_back: Callable[[], None] | None = None
        """Undoes the verdict of the update under way, until that is made."""
        self.meter = LossMeter()
        self.shared: tuple[int, torch.Tensor] | None = None
        """The latest loss in the batch under way, and the optimizer that it was measured for."""
        # the last epoch of which a batch has counted: after a resume its start is not always told
        self._counted = -1
        # of a trial that an exception has ended, for a checkpoint that somebody may still save
        self._left: dict[str, Any] | None = None
        optimizers, trainer = run.ledger.optimizers, run.trainer
        self.optimizers = list(optimizers)
        sharded, scaler = reshard(module), scaler_in_use(trainer)
        self._parted = sharded or parted(optimizers, trainer.world_size)
        self.ground = Ground(run, self.name, module, scaler, sharded=sharded)
        source = Source([module, *averaged_models(trainer.callbacks)], optimizers, scaler)
        largest = partial(_largest, module.device) if self._parted else int
        copies = Generations(source, guard.memory_limit, largest)
        self.one = copies.measure()
        if guard.memory_limit is not None and 2 * self.one > guard.memory_limit:
            raise ValueError(
                f"memory_limit must hold two copies of {self.one} bytes each, got {guard.memory_limit}: "
                f"write {guard.written(memory_limit=2 * self.one)}, or {guard.left_out}"
            )
        interval = None if guard.snapshot_every == "auto" else guard.snapshot_every
        self.keeper = Keeper(copies, interval, self._short)
        self.buffers = Buffers(module, back=1 + self.lag * len(optimizers))
        self.tryout: Tryout | None = None
        self.judges = [Judge(index, self.policy.start()) for index in range(len(optimizers))]
        if saved is not None:
            self.judges = judges_of(saved, type(self.policy.start()))
        elif len(judges) == len(optimizers):
            self.judges = [Judge(judge.index, judge.state, judge.reason, judge.cap) for judge in judges]
        for judge in self.judges:
            judge.trained = self.ground.count(judge.index)
        if saved is not None:
            self._load(saved)
        if not len(copies):
            # the weights at hand are all there is to go back to
            clock = self.record.counts["judged"]
            copies.take(clock, run.journal.step, self.record.counts["lost"])
            self.keeper.since = self.keeper.tried = clock
            self.tryout = None
            for judge in self.judges:
                judge.state = self.first_copy(self.policy.broken_off(judge.state))

    def first_copy(self, state: Any) -> Any:
        """The state after a copy that is both the newest and the best."""
        return self.policy.promoted(self.policy.copied(state))

    def _try_out(self, owner: int, saved: dict[str, Any] | None = None) -> Tryout:
        """A trial for a judge."""
        run = self._run
        return Tryout(owner, run.trainer, self._module, run.ledger, self.keeper.generations, saved)

    def _remember(self) -> Callable[[], None]:
        """Gives what takes back all that a verdict changes, but a rewind."""
        judges, counts = [dict(vars(judge)) for judge in self.judges], dict(self.record.counts)
        tryout, tried = self.tryout, self.keeper.tried
        plan = None if tryout is None else tryout.remember()

        def back() -> None:
            for judge, before in zip(self.judges, judges, strict=True):
                vars(judge).update(before)
            self.record.counts.update(counts)
            self.tryout, self.keeper.tried = tryout, tried
            if plan is not None:
                plan()

        return back

    def _copy(self, judge: Judge, clock: int) -> None:
        """Takes a copy of the weights at hand, after a verdict, if one is due and every judge lets it."""
        keeper, newest, policy = self.keeper, self.keeper.generations.newest, self.policy
        # an optimizer that makes few updates, or none any more, must not keep the others from having copies
        late = clock - newest.clock >= PROOF * len(self.judges)
        active = [one for one in self.judges if one is judge or not policy.rests(one.state)]
        if newest.clock == clock > keeper.since:
            # of an update that was judged, and is judged again since something raised before it was made
            promote = newest.promoted
        elif all(one.copy for one in (active if late else self.judges)) and keeper.due(clock):
            if not late and any(policy.waits(one.state) for one in active):
                return
            # with lag the update at hand is not judged yet, and its forward pass has been: its buffers are copied too
            pending = [finish(one.job)[1] for one in self.judges if one.job is not None]
            if self.lag and (not all(map(finite, pending)) or self.ground.broken()):
                return
            slow = late and len(self.judges) > 1
            promote = all(policy.settled(one.state, slow=slow) for one in active)
            if keeper.generations.source.notice() and not keeper.generations.adopt():
                keeper.tell_short(clock)
            if not keeper.take(clock, self._run.journal.step, self.record.counts["lost"], promote=promote):
                return
        else:
            return
        for one in self.judges:
            one.state = policy.copied(policy.promoted(one.state) if promote else one.state)

    def _adopt(self, judge: Judge, clock: int) -> None:
        """Takes parameters that an optimizer has gained into the copies."""
        now = self.ground.count(judge.index)
        if now > judge.trained and not self.keeper.generations.adopt():
            self.keeper.tell_short(clock)
        judge.trained = now

    # batches ---------------------------------------------------------------------------------------------------

    def begin_batch(self, batch: Any, batch_idx: int) -> None:
        """Keeps what the batch may spoil, and puts a trial's weights in place."""
        first, trainer, self.shared = not self.meter.losses, self._run.trainer, None
        for judge in self.judges:
            judge.seen, judge.dropped = False, judge.dropped and not first
        if first:
            self.buffers.keep()
        self.record.batch(batch, first=first)
        if self.tryout is None:
            self._counted = trainer.current_epoch
        elif not any(peer.trying for peer in self._run.peers if peer is not self._guard):
            self.tryout.begin_batch(batch_idx, must_count=self._counted != trainer.current_epoch)

    def end_batch(self, batch_idx: int) -> None:
        """Puts the run's own weights in place."""
        self.take_back = None
        if self.tryout is not None:
            if self.tryout.counted:
                self._counted = self._run.trainer.current_epoch
            self.tryout.end_batch(batch_idx)
            if self.tryout.idle:
                judge = self.judges[self.tryout.owner]
                judge.state = self.policy.broken_off(judge.state)
                name = self._run.names_at((judge.index, 0)).optimizer
                self._run.journal.tell(f"{self.name}: trial broken off: {name}, which it is of, makes no updates")
            if self.tryout.over or self.tryout.idle:
                self.close()

    def cut_batch(self) -> None:
        """At the end of an epoch: one of its batches may have begun without an end (`on_train_batch_start` gave -1)."""
        if self.tryout is not None and self.tryout.inside:
            self.tryout.rest()
            self.meter.take()

    def fail(self) -> None:
        """Something raised: the run's own weights are put in place, and the trial ends."""
        if self.tryout is not None:
            self.tryout.rest()
        if self.take_back is not None:
            # between the verdict and the update: a resumed run makes the batch again
            self.take_back()
        if self.tryout is not None:
            self._left = self.tryout.state_dict()
        self.close()

    def close(self) -> None:
        """Ends the trial, if there is one, and gives back what it has borrowed."""
        tryout, self.tryout = self.tryout, None
        if tryout is not None:
            tryout.close()

    # state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All of it as plain numbers, strings and lists; with `save_snapshots` the copies and the trial too."""
        jobs = [None if judge.job is None else finish(judge.job)[1] for judge in self.judges]
        offsets = [0 if judge.job is None else judge.job.kept - self.buffers.count for judge in self.judges]
        bad = any(signals is not None and not finite(signals) for signals in jobs)
        # a checkpoint holds the state of rank zero, and of what is parted every rank has its own copies
        copies = self._guard.save_snapshots and not self._parted
        trial = self._left if self.tryout is None or not copies else self.tryout.state_dict()
        return {
            "states": [judge.state.to_dict() for judge in self.judges],
            "judges": [judge.to_dict() for judge in self.judges],
            "jobs": [None if s is None else [list(s), at] for s, at in zip(jobs, offsets, strict=True)],
            "buffers": self.buffers.state_dict() if bad else [],
            "keeper": self.keeper.state_dict(),
            "generations": self.keeper.generations.state_dict() if copies else None,
            "trial": trial if copies else None,
            "flags": [self.given_up, self._counted],
        }

    def _load(self, saved: dict[str, Any]) -> None:
        self.buffers.load_state_dict(saved["buffers"])
        self.keeper.load_state_dict(saved["keeper"])
        copies = None if self._parted else saved["generations"]
        if copies is not None and not self.keeper.generations.load_state_dict(copies):
            rank_zero_warn(
                f"{self.name}: the checkpoint's copies are of another model or of other optimizers, and are "
                f"dropped: the resumed weights are the first copy"
            )
        elif copies is not None and saved["trial"] is not None:
            self.tryout = self._try_out(saved["trial"]["owner"], saved["trial"])
        given_up, self._counted = saved["flags"]
        if given_up:
            rank_zero_warn(
                f"the checkpoint was saved after {self.name} had given up: it judges the run anew, from the weights in "
                f"the checkpoint on, at the rate that the last rewind left"
            )
            for judge in self.judges:
                judge.state = self.policy.again(judge.state)

    def _short(self, one: int, age: int) -> str:
        return (
            f"{self.name}: a copy takes {one} bytes of host memory by now, and two of them are more than "
            f"memory_limit={self._guard.memory_limit}: it takes no more copies, and a rewind goes back to one that it "
            f"has (the newest is {count(age, 'update')} old), so that it may lose much. For two copies write "
            f"{self._guard.written(memory_limit=2 * one)}"
        )


def _largest(device: torch.device, number: int) -> int:
    """The largest of the numbers that the ranks have, on every rank."""
    mine = torch.tensor(number, device=device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(mine, torch.distributed.ReduceOp.MAX)
    return int(mine)
