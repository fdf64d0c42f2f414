"""RunningSweep: one sweep under way, from its first batch to its last."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_lr.copies.footprint import out_of_memory
from lightning_lr.policies.sweep import Next, SweepPolicy, SweepState
from lightning_lr.rates.ledger import Ledger
from lightning_lr.record.curves import FINDER
from lightning_lr.record.journal import Journal
from lightning_lr.run.length import accumulation
from lightning_lr.signals.loss_meter import LossMeter
from lightning_lr.signals.measure import measure
from lightning_lr.sweeps.finding import Finding
from lightning_lr.sweeps.rerun import Rerun
from lightning_lr.trials.aside import Aside, end_trial_rates, in_ratio, references, set_trial_rates
from lightning_lr.trials.second_state import SecondState

SKIPS = 10
"""So many updates in a row that a gradient scaler skips, its scale halved each time, or that have no loss, are the
trial's fault."""

BETWEEN_PAUSES = 3
"""At least so many updates that don't count lie between two pauses: of shorter epochs not every one has a pause."""

FLAGS = ("skipped", "counted", "since", "several", "fresh", "pausing", "pauses")
"""What goes on in the next batch, besides the policy's state and the trial."""


class RunningSweep:
    """Leads the policy through the run's batches, with a trial's state in place within each of them.

    The policy's batches are kept and played again in the place of the run's own, see `Rerun`; where that can't be, they
    are the run's own, and the policy is told.

    What a batch of the run's own logs counts if its forward pass ran at the healthy weights, as it does until a trial's
    first update at a rate above 0. An epoch whose first batch would be another one begins with a *pause*: this batch
    logs and counts, its update is made to a copy that nobody keeps, and it is no point of the sweep. So every epoch has
    true training metrics from its first batch on, also under manual optimization, where no batch of a trial counts. A
    sweep that keeps batches begins with one, too: its first batch had come before there was anybody to keep it. And so
    is what accumulation leaves over at an epoch's end, in which not all of a kept update's batches could be played.

    Under manual optimization a batch is one point, by the loss of its first update.

    Where a rank's device has no memory for a state that is to be made, the sweep has `failed` on all ranks, before
    anything is changed, and the batch that has begun is the run's own.

    Args:
        policy: which rates.
        trainer: whose batches.
        module: whose weights.
        ledger: where the trial's rates go.
        journal: where the curve goes.
        index: of the optimizer that is swept; others train the trial at their own rates, and count nothing.
        bar: a `Bar`, or None.
        began: the policy's state before the first update, and what that is.
        replay: whether batches are kept and played again.
        saved: what `state_dict` gave, of a sweep that goes on.
    """

    def __init__(
        self,
        policy: SweepPolicy,
        trainer: Any,
        module: Any,
        ledger: Ledger,
        journal: Journal,
        index: int,
        bar: Any,
        began: tuple[SweepState, Next],
        *,
        replay: bool = False,
        saved: dict[str, Any] | None = None,
    ) -> None:
        self.policy, self.journal, self.bar = policy, journal, bar
        self._trainer, self._module, self._ledger, self._index = trainer, module, ledger, index
        self._aside = Aside(trainer, module, ledger)
        self._trial = self._aside.trial()
        self._pause: SecondState | None = None
        self._meter = LossMeter()
        self.skipped, self.since = 0, BETWEEN_PAUSES
        # the last epoch of which a batch has counted: after a resume its start is not always told
        self.counted = -1
        # the trial has made no update; an update has several forward passes
        self.fresh = self.several = self.pausing = False
        self._counts = self._stepped = self._seen = self._amid = self.failed = False
        self.state, self.now = began
        self.pauses = replay
        """Whether the next window is a pause."""
        self._rerun: Rerun | None = None
        if saved is not None:
            self.state = SweepState.from_dict(saved["policy"])
            for name in FLAGS:
                setattr(self, name, saved[name])
            self.now = Next(self.state.rates[-1], saved["restore"], saved["batch"])
            if not self.now.restore:
                self._made(lambda: self._trial.load_state_dict(saved["trial"]))
        if replay:
            # it borrows, and so it comes when nothing can fail any more
            self._rerun = Rerun(trainer, self.policy.probes, saved["rerun"] if saved else None)
        if saved is not None:
            self._ask(trainer.current_epoch)

    def state_dict(self) -> dict[str, Any] | None:
        """Between two batches: all that goes on in the next; None where the kept batches can't be in a checkpoint. The
        generators' states are not in it, as Lightning's checkpoints have none either."""
        rerun = None if self._rerun is None else self._rerun.state_dict()
        if self._rerun is not None and rerun is None:
            return None
        trial = None
        if not self.now.restore:
            trial = self._trial.state_dict()
        flags = {name: getattr(self, name) for name in FLAGS}
        following = {"restore": self.now.restore, "batch": self.now.batch}
        return {"policy": self.state.to_dict(), **following, "trial": trial, "rerun": rerun, **flags}

    @property
    def over(self) -> bool:
        """Whether the policy has seen enough."""
        return self.now.rate is None

    @property
    def unpaired(self) -> str | None:
        """Why rates were compared on different batches, in words; None where they were not."""
        if self.state.paired or not self.state.trials:
            return None
        return "replay=False" if self._rerun is None else self._rerun.failed

    @property
    def between_batches(self) -> bool:
        """Whether the healthy state is in place."""
        return self._aside.resting

    def begin_batch(self, batch_idx: int) -> None:
        """Puts the trial in place, or the copy that a pause spoils."""
        automatic = self._module.automatic_optimization
        self._stepped = self._seen = False
        if self._rerun is not None:
            self._rerun.begin_batch()
        own = self._rerun is None or not self._rerun.playing
        self._counts = automatic and own and (self.now.restore or self.fresh) and not self.several
        if self._aside.window_begins(batch_idx) and self._pause_due(self._trainer.current_epoch):
            self.pausing = self.pauses or not self._counts
            self.pauses = False
        self._counts = self._counts or self.pausing
        self._aside.begin_batch(counts=self._counts)
        if self.pausing:
            self._enter_pause()
        else:
            self._enter(metrics=not self._counts)

    def _pause_due(self, epoch: int) -> bool:
        """Whether a window of this epoch that begins now is to count, as none of the epoch has yet."""
        due = self.pauses or (self.counted != epoch and self.since >= BETWEEN_PAUSES)
        return due and not self._amid

    def _rest_begins(self, batch_idx: int) -> bool:
        """Whether what begins with this batch is shorter than the epoch's other windows of accumulation."""
        if not self.state.paired or batch_idx == 0 or not self._aside.window_begins(batch_idx):
            return False
        return batch_idx + accumulation(self._trainer, self._trainer.current_epoch) > self._trainer.num_training_batches

    def _ask(self, epoch: int, batch_idx: int = 0) -> None:
        """Says which batch the loop is to take next, which is this one of this epoch."""
        if self._rerun is None:
            return
        if self._rerun.failed:
            self.state = self.policy.unpaired(self.state)
        if self.pausing or self._pause_due(epoch) or self._rest_begins(batch_idx):
            # it counts, and so it is the run's own
            self.pauses = not self.pausing
            self._rerun.ask(None)
        else:
            self._rerun.ask(self.now.batch)

    def see(self, loss: Tensor) -> None:
        """Takes a loss as it goes into its backward pass."""
        # of an update that evaluates the loss several times (LBFGS, SAM) the first is the one at the weights
        if self._trying and self._ledger.evaluations(self._index) <= 1:
            self._meter.add(loss, self._trainer.accumulate_grad_batches, self._aside.scaler)

    def updated(self, optimizer: int) -> None:
        """After an optimizer's real step: a point, if it is the swept one's and its training step gave a loss."""
        if optimizer != self._index:
            return
        self._stepped = True
        self.several = self.several or self._ledger.evaluations(optimizer) > 1
        if not self._trying:
            return
        if self._seen:
            # one more update of the same batch
            self._meter.take()
            return
        loss = self._loss()
        if loss is None:
            return
        self._seen = True
        self.fresh = self.fresh and self.now.rate == 0.0
        self._take(loss)
        # with manual optimization the same training step may go on, and make another update
        if self._module.automatic_optimization:
            self._trial.leave()
            if self.over:
                end_trial_rates(self._ledger)

    def end_batch(self, batch_idx: int) -> None:
        """Puts the healthy state in place."""
        automatic = self._module.automatic_optimization
        window_over = self._aside.window_over(batch_idx)
        if self._trying and not self._stepped and window_over and automatic and not self.over:
            self._skip()
        self.rest()
        if self._counts:
            self._counts, self.counted, self.since = False, self._trainer.current_epoch, 0
        elif window_over:
            self.since += 1
        if self.pausing and (window_over if automatic else self._stepped):
            self._end_pause()
        # only who optimizes by hand knows of how many batches an update is
        self._amid = not (window_over if automatic else self._stepped)
        if self._rerun is not None:
            self._rerun.end_batch(window_over=not self._amid)
            last = self._trainer.is_last_batch
            self._ask(self._trainer.current_epoch + last, 0 if last else batch_idx + 1)

    def cut_batch(self) -> None:
        """At the end of an epoch: one of its batches may have begun without an end (`on_train_batch_start` gave -1)."""
        automatic, cut = self._module.automatic_optimization, not self.between_batches
        self.rest()
        if cut and (automatic or self._rerun is not None):
            self._meter.take()
        self._amid = self._amid and not cut and not automatic
        if self._rerun is not None:
            self._rerun.end_batch(window_over=not self._amid)
            self._ask(self._trainer.current_epoch + 1)

    def rest(self) -> None:
        """Puts the healthy state in place, wherever in a batch something raised."""
        self._aside.rest()

    def finding(self) -> Finding:
        """What has come out, at the end."""
        assert self.now.suggestion is not None
        update = self._ledger.updates(self._index)
        return Finding.of(self.state, self.now.suggestion, self.policy.suggest, update, self.journal.step)

    def close(self) -> None:
        """Gives back all that was borrowed, whether the sweep is over or not."""
        self._aside.close()
        if self._rerun is not None:
            self._rerun.close()
        if self.bar is not None:
            self.bar.close()

    @property
    def _trying(self) -> bool:
        return self._trial.inside and not self.pausing

    def _made(self, make: Callable[[], None]) -> bool:
        """Makes what takes memory on the device; False where that is short, on any rank. Every rank must call."""
        short = False
        try:
            make()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            short = True
        if self._trainer.world_size > 1:
            device = self._trainer.strategy.root_device
            short = measure(None, [], None, [torch.tensor(float(short))], device=device).more[0] > 0.0
        if short:
            self.failed = True
            self._aside.clear()
            end_trial_rates(self._ledger)
        return not short

    def _put(self, trial: SecondState, *, fresh: bool, metrics: bool) -> bool:
        """Puts a state in place; whether there was memory for it."""

        def put() -> None:
            trial.unpark()
            trial.enter(fresh=fresh, metrics=metrics)

        if fresh or trial.parked:
            return self._made(put)
        put()
        return True

    def _enter(self, *, metrics: bool = True) -> None:
        self.fresh = self.fresh or self.now.restore
        if not self._put(self._trial, fresh=self.now.restore, metrics=metrics):
            return
        self.now = self.now._replace(restore=False)
        self._enter_rates()

    def _enter_pause(self) -> None:
        fresh = self._pause is None
        if self._pause is None and self.now.restore:
            self._pause = self._trial
        elif self._pause is None:
            # on the device there is never more than one copy of the weights
            self._trial.park()
            self._pause = self._aside.trial()
        if self._put(self._pause, fresh=fresh, metrics=False):
            set_trial_rates(self._ledger, None, [])

    def _end_pause(self) -> None:
        if self._pause is not None and self._pause is not self._trial:
            self._aside.drop(self._pause)
        self.pausing, self._pause = False, None

    def _enter_rates(self) -> None:
        assert self.now.rate is not None
        peaks = references(self._ledger, self._trainer, self._index)
        set_trial_rates(self._ledger, self._index, in_ratio(self.now.rate, peaks))

    def _loss(self) -> float | None:
        """The mean over the update's micro-batches and the ranks that saw one; every rank asks, with a loss or not."""
        missed = [] if self._rerun is None else [torch.tensor(float(self._rerun.missed))]
        seen = measure(self._meter.take(), [], None, missed, device=self._trainer.strategy.root_device)
        if self._rerun is not None and seen.more[0] > 0.0:
            # on one rank a kept batch could not be had again
            self._rerun.give_up()
            self.state = self.policy.unpaired(self.state)
        return seen.loss

    def _take(self, loss: float) -> None:
        self.skipped = 0
        rate = self.state.rates[-1]
        self.journal.scalars({f"{FINDER}rate": rate, f"{FINDER}loss": loss})
        self.state, self.now = self.policy.step(self.state, loss)
        if self.bar is not None:
            self.bar.show(len(self.state.losses), f"rate {rate:.2g}, loss {loss:.4g}")

    def _skip(self) -> None:
        """A gradient scaler skipped the update, or there was no loss: no point, unless the trial is past healing."""
        loss = self._loss()
        self.skipped += 1
        if loss is None and self._rerun is not None:
            # it would have none the next time either
            self._rerun.forget()
        # who has no use for a loss that is not finite gives none; the start's own batches may have none
        lost = self.skipped > SKIPS and (loss is not None or self.now.rate != 0.0)
        if lost or (loss is not None and not math.isfinite(loss)):
            self._take(math.inf)
