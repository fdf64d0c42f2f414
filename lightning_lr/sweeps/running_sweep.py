"""A sweep that is under way, from its first batch to its last."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_lr.policies.sweep import SweepPolicy
from lightning_lr.policies.sweep_state import NextUpdate, SweepState
from lightning_lr.rates.ledger import Ledger
from lightning_lr.record.curves import FINDER
from lightning_lr.record.journal import Journal
from lightning_lr.run.length import accumulation
from lightning_lr.signals.loss_meter import LossMeter
from lightning_lr.signals.measure import measure
from lightning_lr.sweeps.finding import Finding
from lightning_lr.sweeps.pauses import Pauses
from lightning_lr.sweeps.stand_ins import StandIns
from lightning_lr.sweeps.sweep_batches import SweepBatches
from lightning_lr.trials.aside import end_trial_rates, in_ratio, references, set_trial_rates

MOST_SKIPS = 10
"""If more updates in a row than this have no loss, or are skipped by a gradient scaler that halves its scale each time,
the rate that is tried is to blame."""

FLAGS = ("skipped", "several", "fresh")
"""What goes on in the next batch, besides the policy's state, the pauses and the state that a rate is tried on."""


class RunningSweep:
    """Leads the policy through the run's batches, with another state in place of the run's own within each of them.

    The batches of the policy are kept and played again in place of the run's own, see `SweepBatches`. If that isn't
    possible, they are the run's own, and the policy compares the losses of different batches.

    What a batch of the run's own logs counts if its forward pass ran at the healthy weights, as it does until the first
    update of a rate's turn at a rate above 0. An epoch whose first batch would not count begins with a *pause*: this
    batch is logged and counts, its update is made to a copy that nobody keeps, and it is no point of the sweep. So
    every epoch has true training metrics from its first batch on, even under manual optimization, where no batch of a
    rate's turn counts. A sweep that keeps batches begins with a pause too, because its first batch had been loaded
    before anything could keep it. And so is what accumulation leaves over at the end of an epoch, where not all batches
    of a kept update could be played.

    Under manual optimization a batch is one point, with the loss of its first update.

    Args:
        policy: which rates are tried.
        trainer: whose batches.
        module: whose weights.
        ledger: where the rates that are tried go.
        journal: where the curve goes.
        index: of the optimizer that is swept; other optimizers train the same state at their own rates, and their
            updates don't count.
        bar: a `Bar`, or None.
        began: the policy's state before the first update, and this update.
        replay: whether batches are kept and played again.
        saved: what `state_dict` gave, if the sweep was begun in an earlier run.
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
        began: tuple[SweepState, NextUpdate],
        *,
        replay: bool = False,
        saved: dict[str, Any] | None = None,
    ) -> None:
        self.policy, self.journal, self.bar = policy, journal, bar
        self._trainer, self._module, self._ledger, self._index = trainer, module, ledger, index
        self._stand_ins = StandIns(trainer, module, ledger)
        self._aside = self._stand_ins.aside
        self._meter = LossMeter()
        self._pauses = Pauses(first=replay, saved=saved)
        self.skipped = 0
        # no update has been made since the healthy start; an update has several forward passes
        self.fresh = self.several = False
        self._stepped = self._seen = False
        self.state, self.now = began
        self._batches: SweepBatches | None = None
        if saved is not None:
            self.state = SweepState.from_dict(saved["policy"])
            for name in FLAGS:
                setattr(self, name, saved[name])
            self.now = NextUpdate(self.state.rates[-1], saved["restore"], saved["batch"])
            if not self.now.restore:
                self._stand_ins.load_state_dict(saved["trial"])
        if replay:
            # it borrows from the loop, so it is made last, when nothing can fail any more
            self._batches = SweepBatches(trainer, self.policy.probes, saved["rerun"] if saved else None)
        if saved is not None:
            self._ask(trainer.current_epoch)

    def state_dict(self) -> dict[str, Any] | None:
        """Between two batches: all that goes on in the next one; None if the kept batches can't be in a checkpoint.

        The states of the random generators are not part of it, because Lightning's checkpoints have none either.
        """
        batches = None if self._batches is None else self._batches.state_dict()
        if self._batches is not None and batches is None:
            return None
        trial = None if self.now.restore else self._stand_ins.state_dict()
        flags = {**{name: getattr(self, name) for name in FLAGS}, **self._pauses.state_dict()}
        following = {"restore": self.now.restore, "batch": self.now.batch}
        return {"policy": self.state.to_dict(), **following, "trial": trial, "rerun": batches, **flags}

    @property
    def failed(self) -> bool:
        """Whether a device has run out of memory."""
        return self._stand_ins.failed

    @property
    def over(self) -> bool:
        """Whether the policy has seen enough."""
        return self.now.rate is None

    @property
    def unpaired(self) -> str | None:
        """Why rates were compared on different batches, in words; None where they were not."""
        if self.state.paired or not self.state.trials:
            return None
        return "replay=False" if self._batches is None else self._batches.failed

    @property
    def pausing(self) -> bool:
        """Whether the sweep waits for an update whose batches count."""
        return self._pauses.pausing

    @property
    def between_batches(self) -> bool:
        """Whether the healthy state is in place."""
        return self._aside.resting

    def begin_batch(self, batch_idx: int) -> None:
        """Puts the state that a rate is tried on in place, or the copy for a pause."""
        automatic = self._module.automatic_optimization
        self._stepped = self._seen = False
        if self._batches is not None:
            self._batches.begin_batch()
        own = self._batches is None or not self._batches.playing
        healthy = automatic and own and (self.now.restore or self.fresh) and not self.several
        window_begins = self._aside.window_begins(batch_idx)
        counts = self._pauses.begin_batch(self._trainer.current_epoch, healthy=healthy, window_begins=window_begins)
        self._aside.begin_batch(counts=counts)
        if self.pausing:
            self._stand_ins.enter_pause(spare=self.now.restore)
        else:
            self._enter(metrics=not counts)

    def _rest_begins(self, batch_idx: int) -> bool:
        """Whether the window of accumulation that begins with this batch is shorter than the others of the epoch."""
        if not self.state.paired or batch_idx == 0 or not self._aside.window_begins(batch_idx):
            return False
        return batch_idx + accumulation(self._trainer, self._trainer.current_epoch) > self._trainer.num_training_batches

    def _ask(self, epoch: int, batch_idx: int = 0) -> None:
        """Says which batch the loop takes next, which is number `batch_idx` of the epoch."""
        if self._batches is None:
            return
        if self._batches.failed:
            self.state = self.policy.unpaired(self.state)
        waits = self._pauses.wait_for(epoch, rest=self._rest_begins(batch_idx))
        self._batches.ask(None if waits else self.now.batch)

    def see(self, loss: Tensor) -> None:
        """Takes a loss as it goes into its backward pass."""
        # an update may evaluate the loss several times (LBFGS, SAM): only the first is at the present weights
        if self._trying and self._ledger.evaluations(self._index) <= 1:
            self._meter.add(loss, self._trainer.accumulate_grad_batches, self._aside.scaler)

    def updated(self, optimizer: int) -> None:
        """After a real optimizer step: takes a point, if it is the swept optimizer's and there was a loss."""
        if optimizer != self._index:
            return
        self._stepped = True
        self.several = self.several or self._ledger.evaluations(optimizer) > 1
        if not self._trying:
            return
        if self._seen:
            # another update on the same batch
            self._meter.take()
            return
        loss = self._loss()
        if loss is None:
            return
        self._seen = True
        self.fresh = self.fresh and self.now.rate == 0.0
        self._take(loss)
        # under manual optimization the same training step may go on, and make another update
        if self._module.automatic_optimization:
            self._stand_ins.leave()
            if self.over:
                end_trial_rates(self._ledger)

    def end_batch(self, batch_idx: int) -> None:
        """Puts the healthy state in place."""
        automatic = self._module.automatic_optimization
        window_over = self._aside.window_over(batch_idx)
        if self._trying and not self._stepped and window_over and automatic and not self.over:
            self._skip()
        self.rest()
        over = window_over if automatic else self._stepped
        if self._pauses.end_batch(self._trainer.current_epoch, window_over=window_over, update_over=over):
            self._stand_ins.end_pause()
        if self._batches is not None:
            self._batches.end_batch(window_over=self._pauses.update_over)
            last = self._trainer.is_last_batch
            self._ask(self._trainer.current_epoch + last, 0 if last else batch_idx + 1)

    def cut_batch(self) -> None:
        """At the end of an epoch, whose last batch may have no end (if `on_train_batch_start` returned -1)."""
        automatic, cut = self._module.automatic_optimization, not self.between_batches
        self.rest()
        if cut and (automatic or self._batches is not None):
            self._meter.take()
        self._pauses.cut(update_over=cut or automatic)
        if self._batches is not None:
            self._batches.end_batch(window_over=self._pauses.update_over)
            self._ask(self._trainer.current_epoch + 1)

    def rest(self) -> None:
        """Puts the healthy state in place, even if something raised in the middle of a batch."""
        self._aside.rest()

    def finding(self) -> Finding:
        """What the sweep has found, at its end."""
        assert self.now.suggestion is not None
        update = self._ledger.updates(self._index)
        return Finding.of(self.state, self.now.suggestion, self.policy.suggest, update, self.journal.step)

    def close(self) -> None:
        """Gives back all that was borrowed, whether the sweep is over or not."""
        self._aside.close()
        if self._batches is not None:
            self._batches.close()
        if self.bar is not None:
            self.bar.close()

    @property
    def _trying(self) -> bool:
        return self._stand_ins.trying and not self.pausing

    def _enter(self, *, metrics: bool = True) -> None:
        self.fresh = self.fresh or self.now.restore
        if not self._stand_ins.enter(fresh=self.now.restore, metrics=metrics):
            return
        self.now = self.now._replace(restore=False)
        self._enter_rates()

    def _enter_rates(self) -> None:
        assert self.now.rate is not None
        peaks = references(self._ledger, self._trainer, self._index)
        set_trial_rates(self._ledger, self._index, in_ratio(self.now.rate, peaks))

    def _loss(self) -> float | None:
        """The mean over the update's micro-batches and the ranks that saw one; every rank must call."""
        missed = [] if self._batches is None else [torch.tensor(float(self._batches.missed))]
        seen = measure(self._meter.take(), [], None, missed, device=self._trainer.strategy.root_device)
        if self._batches is not None and seen.more[0] > 0.0:
            # one rank couldn't get a kept batch again
            self._batches.give_up()
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
        """A gradient scaler skipped the update, or there was no loss: no point, unless the state is beyond repair."""
        loss = self._loss()
        self.skipped += 1
        if loss is None and self._batches is not None:
            # it would have no loss the next time either
            self._batches.forget()
        # a training step that rejects a loss that is not finite returns none; at the start's weights that says nothing
        lost = self.skipped > MOST_SKIPS and (loss is not None or self.now.rate != 0.0)
        if lost or (loss is not None and not math.isfinite(loss)):
            self._take(math.inf)
