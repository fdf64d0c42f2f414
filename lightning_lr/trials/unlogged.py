"""Unlogged: batches whose `self.log` calls don't count."""

from __future__ import annotations

from typing import Any

from lightning_lr.internals import forget_step_value, training_results


class Unlogged:
    """Sets what the training epoch has logged so far aside for the length of a batch."""

    def __init__(self) -> None:
        self._counted: dict[str, Any] | None = None

    def begin_batch(self, trainer: Any) -> None:
        """From here to `end_batch` nothing counts."""
        results = training_results(trainer)
        self._counted = dict(results)
        results.clear()

    def end_batch(self, trainer: Any) -> None:
        """Puts back what was set aside; without effect outside of such a batch."""
        if self._counted is None:
            return
        results = training_results(trainer)
        results.clear()
        results.update(self._counted)
        self._counted = None
        for result in results.values():
            # `callback_metrics` keeps the last real value; the loggers are not to get it again as this batch's own
            forget_step_value(result)
