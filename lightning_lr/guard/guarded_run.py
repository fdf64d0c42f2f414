"""GuardedRun: what a guard has within one run, how it begins, and how it is saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_lr.copies.buffers import Buffers
from lightning_lr.copies.optimizer_memory import parted
from lightning_lr.copies.source import Source
from lightning_lr.guard.gauge import Gauge
from lightning_lr.guard.guard_trial import GuardTrial
from lightning_lr.guard.incident_record import unfilled
from lightning_lr.guard.incidents import Incidents
from lightning_lr.guard.judge import Judge, judges_of
from lightning_lr.guard.keeper import Keeper
from lightning_lr.guard.unjudged import finish, finite
from lightning_lr.guard.update_guard import UpdateGuard
from lightning_lr.internals import averages, scaler_in_use
from lightning_lr.run.run import Run
from lightning_lr.shards import reshard
from lightning_lr.signals.loss_meter import LossMeter

ENTRIES = ("states", "judges", "jobs", "buffers", "keeper", "generations", "trial", "flags", "record")
"""The entries of a guard's saved state; `flags` are `given_up` and the last epoch in which a batch has counted."""


def readable(saved: dict[str, Any], policy: Any) -> dict[str, Any]:
    """A guard's saved state, if it is one of this release.

    Raises:
        LookupError, TypeError, ValueError: if not.
    """
    if saved.keys() != set(ENTRIES):
        raise LookupError(f"other entries: {', '.join(sorted(saved.keys() ^ set(ENTRIES)))}")
    judges_of(saved, type(policy.start()))
    _, _ = saved["flags"]
    _ = [saved["keeper"][clock] for clock in ("since", "tried", "unproven")]
    return saved


class GuardedRun:
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
        self.guard, self.run, self.module = guard, run, module
        self.name, self.policy, self.lag = guard.name, guard.policy, guard.lag
        self.record: Incidents = guard.record
        self.given_up = False
        self.take_back: Callable[[], None] | None = None
        """Undoes the verdict of the update under way, until that is made."""
        self.meter = LossMeter()
        self.shared: tuple[int, torch.Tensor] | None = None
        """The latest loss in the batch under way, and the optimizer that it was measured for."""
        # the last epoch in which a batch has counted: after a resume the start of an epoch is not always announced
        self._counted = -1
        # the state of a trial that an exception has ended, for a checkpoint that may still be saved
        self._left: dict[str, Any] | None = None
        optimizers, trainer = run.ledger.optimizers, run.trainer
        self.optimizers = list(optimizers)
        sharded, scaler = reshard(module), scaler_in_use(trainer)
        self._parted = sharded or parted(optimizers, trainer.world_size)
        self.gauge = Gauge(run, self.name, module, scaler, sharded=sharded)
        source = Source([module], optimizers, scaler, averages(trainer.callbacks))
        self.keeper = Keeper(self, source, parted=self._parted)
        self.buffers = Buffers(module, back=1 + self.lag * len(optimizers))
        self.updates = UpdateGuard(self)
        self.trial: GuardTrial | None = None
        self.judges = [Judge(index, self.policy.start()) for index in range(len(optimizers))]
        if saved is not None:
            self.judges = judges_of(saved, type(self.policy.start()))
        elif len(judges) == len(optimizers):
            self.judges = [Judge(judge.index, judge.state, judge.reason, judge.cap) for judge in judges]
        for judge in self.judges:
            judge.trained = self.gauge.count(judge.index)
        if saved is not None:
            self._load(saved)
        if not len(self.keeper.copies):
            self.begin_copies()

    def begin_copies(self) -> None:
        """Takes the first copy, if there is memory for any: the weights at hand are all there is to go back to."""
        self.trial = None
        for judge in self.judges:
            judge.state = self.policy.broken_off(judge.state)
        if not self.keeper.possible:
            self.policy = replace(self.policy, trials=False)
            return
        self.keeper.begin()
        for judge in self.judges:
            judge.state = self.first_copy(judge.state)

    def first_copy(self, state: Any) -> Any:
        """The state after a copy that is both the newest and the best."""
        return self.policy.promoted(self.policy.copied(state))

    def begin_trial(self, owner: int, saved: dict[str, Any] | None = None) -> GuardTrial:
        """A trial for a judge."""
        run = self.run
        return GuardTrial(owner, run.trainer, self.module, run.ledger, self.keeper.copies, saved)

    def remember(self) -> Callable[[], None]:
        """Returns a function that takes back all that a verdict changes, except a rewind."""
        judges, counts = [dict(vars(judge)) for judge in self.judges], dict(self.record.counts)
        trial, keeper, copies = self.trial, dict(vars(self.keeper)), dict(vars(self.keeper.copies))
        plan = None if trial is None else trial.remember()

        def back() -> None:
            for judge, before in zip(self.judges, judges, strict=True):
                vars(judge).update(before)
            self.record.counts.update(counts)
            self.trial = trial
            vars(self.keeper).update(keeper)
            vars(self.keeper.copies).update(copies)
            if plan is not None:
                plan()

        return back

    # batches ---------------------------------------------------------------------------------------------------

    def begin_batch(self, batch: Any, batch_idx: int) -> None:
        """Keeps what the batch may spoil, and puts the weights of a trial in place."""
        first, trainer, self.shared = not self.meter.losses, self.run.trainer, None
        for judge in self.judges:
            judge.seen, judge.dropped = False, judge.dropped and not first
        if first:
            self.buffers.keep()
            if self.trial is None and not self.given_up:
                self.keeper.copies.notice_resets()
                self.keeper.copy()
            if self._parted and any(peer.sweeps for peer in self.run.peers):
                # a sweep exchanges sharded weights in place
                self.keeper.copies.fence()
        self.record.batch(batch, first=first)
        if self.trial is None:
            self._counted = trainer.current_epoch
        elif not any(peer.trying for peer in self.run.peers if peer is not self.guard):
            self.trial.begin_batch(batch_idx, must_count=self._counted != trainer.current_epoch)

    def end_batch(self, batch_idx: int) -> None:
        """Puts the run's own weights in place."""
        self.take_back = None
        self.keeper.copies.source.settle()
        if self.trial is not None:
            if self.trial.counted:
                self._counted = self.run.trainer.current_epoch
            self.trial.end_batch(batch_idx)
            if self.trial.idle:
                judge = self.judges[self.trial.owner]
                judge.state = self.policy.broken_off(judge.state)
                name = self.run.names_at((judge.index, 0)).optimizer
                line = f"{self.name}: trial of {name} broken off: it makes no more updates"
                record = {**unfilled(self.run, self.name, judge.index), "what": "broken off", "told": True}
                self.run.journal.tell(line, record=record)
            if self.trial.over or self.trial.idle:
                self.close()

    def cut_batch(self) -> None:
        """At the end of an epoch: one of its batches may have begun without an end (`on_train_batch_start` gave -1)."""
        if self.trial is not None and self.trial.inside:
            self.trial.rest()
            self.meter.take()

    def fail(self) -> None:
        """Something raised: the run's own weights are put in place, and the trial ends."""
        if self.trial is not None:
            self.trial.rest()
        if self.take_back is not None:
            # between the verdict and the update: a resumed run makes the batch again
            self.take_back()
        if self.trial is not None:
            self._left = self.trial.state_dict()
        if all(judge.unjudged is None for judge in self.judges):
            # else a checkpoint that is saved now needs them, for the update that is not judged yet
            self.buffers.free()
        self.close()

    def close(self) -> None:
        """Ends the trial, if there is one, and gives back what it has borrowed."""
        trial, self.trial = self.trial, None
        if trial is not None:
            trial.close()

    # state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All of it as plain numbers, strings and lists; with `save_snapshots` the copies and the trial too."""
        jobs = [None if judge.unjudged is None else finish(judge.unjudged)[1] for judge in self.judges]
        offsets = [0 if judge.unjudged is None else judge.unjudged.kept - self.buffers.count for judge in self.judges]
        bad = any(signals is not None and not finite(signals) for signals in jobs)
        # a checkpoint holds the state of rank zero, and of what is parted every rank has its own copies
        copies = self.guard.save_snapshots and not self._parted
        trial = self._left if self.trial is None or not copies else self.trial.state_dict()
        return {
            "states": [judge.state.to_dict() for judge in self.judges],
            "judges": [judge.to_dict() for judge in self.judges],
            "jobs": [None if s is None else [list(s), at] for s, at in zip(jobs, offsets, strict=True)],
            "buffers": self.buffers.state_dict() if bad else [],
            "keeper": self.keeper.state_dict(),
            "generations": self.keeper.saved() if copies else None,
            "trial": trial if copies else None,
            "flags": [self.given_up, self._counted],
        }

    def _load(self, saved: dict[str, Any]) -> None:
        self.buffers.load_state_dict(saved["buffers"])
        self.keeper.load_state_dict(saved["keeper"])
        copies = None if self._parted else saved["generations"]
        if not self.keeper.possible:
            copies = None
        if copies is not None and not self.keeper.copies.load_state_dict(copies):
            rank_zero_warn(
                f"{self.name}: the checkpoint's copies are of another model or of other optimizers, and are "
                f"dropped: the resumed weights are the first copy"
            )
        elif copies is not None and saved["trial"] is not None:
            self.trial = self.begin_trial(saved["trial"]["owner"], saved["trial"])
        given_up, self._counted = saved["flags"]
        if given_up:
            rank_zero_warn(
                f"the checkpoint was saved after {self.name} had given up: it judges the run anew, from the weights in "
                f"the checkpoint on, at the rate that the last rewind left"
            )
            for judge in self.judges:
                judge.state = self.policy.again(judge.state)
