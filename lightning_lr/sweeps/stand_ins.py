"""The states that a sweep puts in place of the run's own, and the memory that they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lightning_lr.copies.footprint import out_of_memory
from lightning_lr.rates.ledger import Ledger
from lightning_lr.signals.measure import measure
from lightning_lr.trials.aside import Aside, end_trial_rates, set_trial_rates
from lightning_lr.trials.second_state import SecondState


class StandIns:
    """The state that a rate is tried on, and during a pause a copy that nobody keeps.

    On the device there is never more than one copy of the weights: during a pause the other one waits in host memory.

    Where a rank's device has no memory for a state that is to be made, the sweep has `failed` on all ranks, before
    anything is changed.

    Args:
        trainer: whose batches.
        module: whose weights.
        ledger: where the rates of a sweep go.
    """

    def __init__(self, trainer: Any, module: Any, ledger: Ledger) -> None:
        self._trainer, self._ledger = trainer, ledger
        self.aside = Aside(trainer, module, ledger)
        self._tried = self.aside.trial()
        self._spoiled: SecondState | None = None
        self.failed = False

    def state_dict(self) -> dict[str, Any]:
        """The state that a rate is tried on."""
        return self._tried.state_dict()

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave, if there is memory for it."""
        self._make(lambda: self._tried.load_state_dict(saved))

    @property
    def trying(self) -> bool:
        """Whether the state that a rate is tried on is in place."""
        return self._tried.inside

    def enter(self, *, fresh: bool, metrics: bool) -> bool:
        """Puts the state that a rate is tried on in place.

        Args:
            fresh: whether it begins as a copy of the healthy state.
            metrics: whether torchmetrics go with it.

        Returns:
            Whether there was memory for it.
        """
        return self._put(self._tried, fresh=fresh, metrics=metrics)

    def enter_pause(self, *, spare: bool) -> None:
        """Puts a copy of the healthy state in place, for an update that comes to nothing.

        Args:
            spare: whether the next rate begins from the healthy state, so that its state is free for this.
        """
        fresh = self._spoiled is None
        if self._spoiled is None and spare:
            self._spoiled = self._tried
        elif self._spoiled is None:
            self._tried.park()
            self._spoiled = self.aside.trial()
        if self._put(self._spoiled, fresh=fresh, metrics=False):
            set_trial_rates(self._ledger, None, [])

    def end_pause(self) -> None:
        """Lets go of the copy."""
        if self._spoiled is not None and self._spoiled is not self._tried:
            self.aside.drop(self._spoiled)
        self._spoiled = None

    def leave(self) -> None:
        """Puts the healthy state in place within a batch."""
        self._tried.leave()

    def _put(self, state: SecondState, *, fresh: bool, metrics: bool) -> bool:
        def put() -> None:
            state.unpark()
            state.enter(fresh=fresh, metrics=metrics)

        if fresh or state.parked:
            return self._make(put)
        put()
        return True

    def _make(self, make: Callable[[], None]) -> bool:
        """Makes what takes memory on the device; False where it runs short, on any rank. Every rank must call."""
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
            self.aside.clear()
            end_trial_rates(self._ledger)
        return not short
