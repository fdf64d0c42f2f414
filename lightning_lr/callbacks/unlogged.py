"""Unlogged: batches whose `self.log` calls don't count."""

from __future__ import annotations

from typing import Any


class Unlogged:
    """Sets what the training epoch has logged so far aside for the length of a batch."""

    def __init__(self) -> None:
        self._counted: dict[str, Any] | None = None

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
        results.clear()
        results.update(self._counted)
        self._counted = None
        for result in results.values():
            # `callback_metrics` keeps the last real value; the loggers are not to get it again as this batch's own
            result._forward_cache = None
