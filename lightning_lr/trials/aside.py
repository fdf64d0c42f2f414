"""Aside: batches of a run at other weights, and no trace after them."""

from __future__ import annotations

from typing import Any

import torch

from lightning_lr.batches.randomness import RandomState
from lightning_lr.internals import scaler_in_use
from lightning_lr.rates.ledger import Ledger
from lightning_lr.rates.reference import reference_rates
from lightning_lr.trials.second_state import SecondState
from lightning_lr.trials.unlogged import Unlogged


class Aside:
    """What a sweep and a guard's trial have in common: other states in place within batches of the run.

    Within a batch one second state is in place. At the end of the batch, at an exception, and at the end of an epoch
    that was cut short, `rest` puts the healthy state back. `close` sets the random generators back to where they were
    when this was made, that is, before the first such batch.

    Args:
        trainer: whose batches.
        module: whose weights.
        ledger: where a trial's rates go.
    """

    def __init__(self, trainer: Any, module: Any, ledger: Ledger) -> None:
        self._trainer, self._module, self._ledger = trainer, module, ledger
        self.scaler = scaler_in_use(trainer)
        self._random = RandomState(*drawing(trainer, module))
        self._second_states: list[SecondState] = []
        self._unlogged = Unlogged()

    def trial(self) -> SecondState:
        """A new state, not in place yet; `drop` lets go of it."""
        made = SecondState(self._module, self._ledger.optimizers, self.scaler)
        self._second_states.append(made)
        return made

    def drop(self, state: SecondState) -> None:
        """Lets go of a state that is not in place."""
        self._second_states.remove(state)

    def clear(self) -> None:
        """Lets go of all states, even while one of them is being made."""
        self.leave()
        self._second_states = []

    @property
    def resting(self) -> bool:
        """Whether the healthy state is in place."""
        return not any(state.inside for state in self._second_states)

    def window_begins(self, batch_idx: int) -> bool:
        """Whether the batch is the first of an update; under manual optimization each one is."""
        return not self._module.automatic_optimization or batch_idx % self._trainer.accumulate_grad_batches == 0

    def window_over(self, batch_idx: int) -> bool:
        """Whether the batch is the last of an update."""
        parts = self._trainer.accumulate_grad_batches
        return not self._module.automatic_optimization or (batch_idx + 1) % parts == 0 or self._trainer.is_last_batch

    def begin_batch(self, *, counts: bool) -> None:
        """From here to `rest`, what the batch logs counts for nothing, unless it `counts`."""
        if not counts:
            self._unlogged.begin_batch(self._trainer)

    def leave(self) -> None:
        """Puts the healthy state in place; the rest of the batch still counts for nothing."""
        for state in self._second_states:
            state.end_batch()

    def rest(self) -> None:
        """Puts the healthy state in place; safe wherever in a batch something raised."""
        self.leave()
        self._unlogged.end_batch(self._trainer)

    def close(self) -> None:
        """Gives back all that was borrowed."""
        self.rest()
        end_trial_rates(self._ledger)
        for optimizer in self._ledger.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self._random.restore()


def drawing(trainer: Any, module: Any) -> list[torch.device]:
    """The devices on which a training step may draw random numbers."""
    return list(dict.fromkeys((trainer.strategy.root_device, *(p.device for p in module.parameters()))))


def references(ledger: Ledger, trainer: Any, index: int) -> list[float]:
    """The rates of an optimizer's param groups that a suggestion is compared with; see `reference_rates`.

    Raises:
        ValueError: when none is above 0 and finite: there is no ratio to keep.
    """
    rates = reference_rates(ledger.optimizers[index], [config.scheduler for config in trainer.lr_scheduler_configs])
    if not 0.0 < max(rates) < float("inf"):
        raise ValueError(
            f"a found rate keeps the ratio of the param groups' rates, but the highest is {max(rates)}: "
            f"give the optimizer any lr > 0"
        )
    return rates


def set_trial_rates(ledger: Ledger, index: int | None, rates: list[float]) -> None:
    """Gives the groups of optimizer `index` trial rates in the ratio of `rates`, and all others their own.

    A rate of its own is a trial's too: no update counts until `end_trial_rates`.
    """
    for other in range(len(ledger.optimizers)):
        if other == index:
            ledger.set_trial(rates, optimizer=other)
            continue
        # what it would be now, not what it was when the trial's rate was last set
        ledger.set_trial(None, optimizer=other)
        own = [ledger.effective(other, group) for group in range(ledger.groups(other))]
        ledger.set_trial(own, optimizer=other)


def in_ratio(rate: float, peaks: list[float]) -> list[float]:
    """Rates in the ratio of the peaks; the highest is `rate`."""
    return [rate * peak / max(peaks) for peak in peaks]


def end_trial_rates(ledger: Ledger) -> None:
    """From here on updates count, at the rates that the ledger has."""
    for optimizer in range(len(ledger.optimizers)):
        ledger.set_trial(None, optimizer=optimizer)
