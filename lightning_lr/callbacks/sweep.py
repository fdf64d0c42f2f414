"""Sweep: one sweep under way, from its first batch to its last."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from lightning_lr.callbacks.unlogged import Unlogged
from lightning_lr.finding import Finding
from lightning_lr.journal import Journal
from lightning_lr.ledger import Ledger
from lightning_lr.policies.sweep import Next, SweepPolicy, SweepState
from lightning_lr.reference import reference_rates
from lightning_lr.signals import LossMeter, measure
from lightning_lr.trial import RandomState, Trial

CURVE = "lr-finder"
"""The first part of the curve's tags: `lr-finder/rate`, `lr-finder/loss`, and the figure `lr-finder`."""

SKIPS = 10
"""So many updates in a row that a gradient scaler skips, its scale halved each time, are the trial's fault."""


class Sweep:
    """Leads the policy through the run's batches, with a trial's state in place within each of them.

    Args:
        policy: which rates.
        trainer: whose batches.
        module: whose weights.
        ledger: where the trial's rates go.
        journal: where the curve goes.
        index: of the optimizer that is swept; others train the trial at their own rates, and count nothing.
        bar: a tqdm progress bar, or None.
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
        saved: dict[str, Any] | None = None,
    ) -> None:
        self.policy, self.journal, self.bar = policy, journal, bar
        self._trainer, self._module, self._ledger, self._index = trainer, module, ledger, index
        self._scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._random = RandomState(module.device)
        self._trial = Trial(module, ledger.optimizers, self._scaler)
        self._unlogged, self._meter = Unlogged(), LossMeter()
        self._skipped = 0
        self.state, self.now = policy.start()
        self.now = self.now._replace(restore=True)
        if saved is not None:
            self.state, self._skipped = SweepState.from_dict(saved["policy"]), saved["skipped"]
            self.now = Next(self.state.rates[-1], saved["restore"])
            if not self.now.restore:
                self._trial.load_state_dict(saved["trial"])

    def state_dict(self) -> dict[str, Any]:
        """Between two batches: all that goes on in the next. The generators' states are not in it, as Lightning's
        checkpoints have none either."""
        return {
            "policy": self.state.to_dict(),
            "skipped": self._skipped,
            "restore": self.now.restore,
            "trial": None if self.now.restore else self._trial.state_dict(),
        }

    @property
    def over(self) -> bool:
        """Whether the policy has seen enough."""
        return self.now.rate is None

    @property
    def between_batches(self) -> bool:
        """Whether the healthy state is in place."""
        return not self._trial.inside

    def begin_batch(self) -> None:
        """Puts the trial in place."""
        self._unlogged.begin_batch(self._trainer)
        if not self.over:
            self._enter()

    def see(self, loss: Tensor) -> None:
        """Takes a loss as it goes into its backward pass."""
        # of an update that evaluates the loss several times (LBFGS, SAM) the first is the one at the weights
        if self._trial.inside and self._ledger.evaluations(self._index) <= 1:
            self._meter.add(loss, self._trainer.accumulate_grad_batches, self._scaler)

    def updated(self, optimizer: int) -> None:
        """After an optimizer's real step: a point, if it is the swept one's and its training step gave a loss."""
        if not self._trial.inside or optimizer != self._index:
            return
        loss = self._loss()
        if loss is None:
            return
        self._take(loss)
        if self.over or self._module.automatic_optimization:
            self._trial.leave()
            if self.over:
                set_trial_rates(self._ledger, self._trainer, self._index, None)
        elif self.now.restore:
            # with manual optimization the same training step may go on, and make another update
            self._trial.leave()
            self._enter()
        else:
            self._enter_rates()

    def end_batch(self, batch_idx: int) -> None:
        """Puts the healthy state in place."""
        window_over = (batch_idx + 1) % self._trainer.accumulate_grad_batches == 0 or self._trainer.is_last_batch
        if self._meter.losses and window_over and self._module.automatic_optimization and not self.over:
            self._skip()
        self._trial.end_batch()
        self._unlogged.end_batch(self._trainer)
        if self._trainer.is_last_batch:
            self._unlogged.end_epoch(self._trainer)

    def rest(self) -> None:
        """Puts the healthy state in place, wherever in a batch something raised."""
        self._trial.end_batch()

    def finding(self) -> Finding:
        """What has come out, at the end."""
        assert self.now.suggestion is not None
        update = self._ledger.updates(self._index)
        return Finding.of(self.state, self.now.suggestion, self.policy.suggest, update, self.journal.step)

    def close(self) -> None:
        """Gives back all that was borrowed, whether the sweep is over or not."""
        self.rest()
        set_trial_rates(self._ledger, self._trainer, self._index, None)
        for optimizer in self._ledger.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self._random.restore()
        if self.bar is not None:
            self.bar.close()

    def _enter(self) -> None:
        self._trial.enter(fresh=self.now.restore)
        self.now = self.now._replace(restore=False)
        self._enter_rates()

    def _enter_rates(self) -> None:
        set_trial_rates(self._ledger, self._trainer, self._index, self.now.rate)

    def _loss(self) -> float | None:
        """The mean over the update's micro-batches and the ranks that saw one; every rank asks, with a loss or not."""
        return measure(self._meter.take(), [], device=self._trainer.strategy.root_device).loss

    def _take(self, loss: float) -> None:
        self._skipped = 0
        rate = self.state.rates[-1]
        self.journal.scalars({f"{CURVE}/rate": rate, f"{CURVE}/loss": loss})
        self.state, self.now = self.policy.step(self.state, loss)
        if self.bar is not None:
            self.bar.set_postfix_str(f"rate {rate:.2g}, loss {loss:.4g}")
            self.bar.update()

    def _skip(self) -> None:
        """A gradient scaler skipped the update: no point, unless the trial is past healing."""
        loss = self._loss()
        if loss is None:
            return
        self._skipped += 1
        if not math.isfinite(loss) or self._skipped > SKIPS:
            self._take(math.inf)


def references(ledger: Ledger, trainer: Any, index: int) -> list[float]:
    """The rates of an optimizer's param groups that a suggestion is compared with; see `reference_rates`.

    Raises:
        ValueError: when none is above 0 and finite: there is no ratio to keep.
    """
    rates = reference_rates(ledger.optimizers[index], [config.scheduler for config in trainer.lr_scheduler_configs])
    if not 0.0 < max(rates) < math.inf:
        raise ValueError(
            f"a found rate keeps the ratio of the param groups' rates, but the highest is {max(rates)}: "
            f"give the optimizer any lr > 0"
        )
    return rates


def set_trial_rates(ledger: Ledger, trainer: Any, index: int, rate: float | None) -> None:
    """Gives the swept optimizer's groups a trial rate in their ratio, the highest `rate`; None ends the trial."""
    for other in range(len(ledger.optimizers)):
        rates = None
        if rate is not None and other == index:
            peaks = references(ledger, trainer, index)
            rates = [rate * peak / max(peaks) for peak in peaks]
        elif rate is not None:
            # what it would be now, not what it was when the trial's rate was last set
            ledger.set_trial(None, optimizer=other)
            rates = [ledger.effective(other, group) for group in range(ledger.groups(other))]
        ledger.set_trial(rates, optimizer=other)
