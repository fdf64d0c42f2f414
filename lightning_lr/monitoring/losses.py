"""Losses: those that a run logs, kept for a picture."""

from __future__ import annotations

import re
from typing import Any

from lightning_lr.internals import callback_metrics, logged_value, training_results
from lightning_lr.record.series import Series
from lightning_lr.run.length import accumulation

_LOSS = re.compile("loss", re.IGNORECASE)

RETURNED = "loss"
"""The name of the returned loss, where `training_step` logs no loss by step."""


class Losses:
    """Metrics with "loss" in their name, in bounded memory, whatever the loggers are.

    They are read where Lightning itself reads metrics: at its logging steps and after each epoch.
    """

    def __init__(self) -> None:
        self.series: dict[str, Series] = {}
        self._by_step: set[str] = set()
        self._seen: dict[str, Any] = {}

    def after_batch(self, trainer: Any, step: int, outputs: Any) -> None:
        """Takes the losses of a batch, at a logging step outside a trial.

        Args:
            trainer: the trainer, within its training loop.
            step: the step on the loggers' axis.
            outputs: what `on_train_batch_end` receives of `training_step`.
        """
        gathered, found = training_results(trainer), False
        for result in gathered.values():
            meta = result.meta
            if meta.on_step and _LOSS.search(meta.name):
                name = f"{meta.name}_step" if meta.on_epoch else meta.name
                value = logged_value(gathered, result, on_step=True)
                # a batch that doesn't count has no value, and what it returned doesn't count either
                found = True
                self._add(name, step, value)
                self._by_step |= {name, meta.name}
        if not found and isinstance(outputs, dict) and outputs.get("loss") is not None:
            # Lightning has divided it by the batches of an update
            self._add(RETURNED, step, outputs["loss"] * accumulation(trainer, trainer.current_epoch))

    def after_epoch(self, trainer: Any, step: int) -> None:
        """Takes the losses of epochs, after a training epoch or a validation."""
        for name, value in callback_metrics(trainer).items():
            if name not in self._by_step and _LOSS.search(name) and self._seen.get(name) is not value:
                self._seen[name] = value
                self._add(name, step, value)

    def _add(self, name: str, step: int, value: Any) -> None:
        if value is not None and getattr(value, "numel", lambda: 1)() == 1:
            self.series.setdefault(name, Series()).add(step, float(value))
