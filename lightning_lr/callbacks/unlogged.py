"""Unlogged: batches whose `self.log` calls don't count."""

from __future__ import annotations

from typing import Any


class Unlogged:
    """Sets what the training epoch has logged so far aside for the length of a batch.

    A value that nobody logs outside of such batches in an epoch stays that of the first of them, as others (early
    stopping, a checkpoint) rely on its being there; a torchmetrics object that was not updated has none to give.
    """

    def __init__(self) -> None:
        self._counted: dict[str, Any] | None = None
        self._first: dict[str, Any] = {}

    def begin_batch(self, trainer: Any) -> None:
        """From here to `end_batch` nothing counts."""
        results = trainer.fit_loop.epoch_loop._results
        self._counted = dict(results)
        results.clear()

    def end_batch(self, trainer: Any) -> None:
        """Puts back what was set aside; without effect outside of such a batch."""
        if self._counted is None:
            return
        results = trainer.fit_loop.epoch_loop._results
        for key, value in results.items():
            self._first.setdefault(key, value)
        results.clear()
        results.update(self._counted)
        self._counted = None

    def end_epoch(self, trainer: Any) -> None:
        """Gives the epoch the metrics that it would lack."""
        results = trainer.fit_loop.epoch_loop._results
        for key, value in self._first.items():
            if value.is_tensor:
                results.setdefault(key, value)
        self._first = {}
