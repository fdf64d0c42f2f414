"""Where in a run a monitored metric is produced, and its values as they come."""

from __future__ import annotations

from typing import Any

import torch

from lightning_lr.signals.metric import Metric


class MetricSource:
    """Reads a metric where it is produced: at every step, at an epoch's end, or in validation.

    The first place at which it turns up is its source, and no other one is read after that. Each method returns the
    values that are new, as plain numbers that are equal on all ranks; every rank must call it.

    Args:
        name: of the metric, as logged.
        together: how many updates' values of a metric of every step are read at once, >= 1.
    """

    def __init__(self, name: str, together: int) -> None:
        self._metric, self._together = Metric(name), together
        self.place: str | None = None
        """`step`, `epoch`, `late` (logged after the callbacks' turn at an epoch's end) or `validation`."""
        self._micro_batches: list[torch.Tensor] = []
        self._updates: list[torch.Tensor | None] = []
        self._stepped = self._asked = self._late = False

    def may_be(self, place: str) -> bool:
        """Whether values may come from there: none has come yet, or all have come from there."""
        return self.place in (None, place)

    def after_update(self) -> None:
        """An optimizer has made a real update."""
        self._stepped = True

    def after_batch(self, trainer: Any) -> list[float]:
        """Within `on_train_batch_end`."""
        if not self.may_be("step"):
            return []
        value = self._metric.produced(trainer, on_step=True)
        if self.place is None:
            # of several ranks all are asked, once an epoch: one that lacks the metric must not leave the others waiting
            if self._asked and trainer.world_size > 1:
                return []
            self._asked = True
            if self._metric.agree(trainer, [value]) == [None]:
                return []
            self.place = "step"
        if value is not None:
            self._micro_batches.append(value)
        if not self._stepped:
            return []
        self._stepped = False
        batches, self._micro_batches = self._micro_batches, []
        self._updates.append(
            torch.stack([b.to(batches[-1].device) for b in batches]).mean()
            if len(batches) > 1
            else (batches or [None])[0]
        )
        if len(self._updates) < self._together:
            return []
        updates, self._updates = self._updates, []
        return [number for number in self._metric.agree(trainer, updates) if number is not None]

    def after_validation(self, trainer: Any) -> list[float]:
        """Within `on_validation_end`."""
        if not self.may_be("validation"):
            return []
        return self._read(trainer, self._metric.produced(trainer, on_step=False), "validation")

    def after_epoch(self, trainer: Any) -> list[float]:
        """Within `on_train_epoch_end`."""
        numbers: list[float] = []
        if self.may_be("epoch"):
            numbers = self._read(trainer, self._metric.produced(trainer, on_step=False), "epoch")
        if self.place is None and self._metric.agree(trainer, [self._metric.produced(trainer, on_step=True)]) != [None]:
            self.place = "step"
        self._late = self.may_be("late")
        return numbers

    def late(self, trainer: Any) -> list[float]:
        """For a metric that the module logs in its own `on_train_epoch_end`, which comes after the callbacks'."""
        if not self._late:
            return []
        self._late = False
        value = self._metric.produced(trainer, on_step=False)
        if value is None:
            value = self._metric.kept(trainer)
        return self._read(trainer, value, "late")

    def begin_epoch(self) -> None:
        """An epoch begins."""
        self._asked = False

    def drop(self) -> None:
        """Drops the values that nobody has read yet."""
        self._micro_batches, self._updates = [], []

    def forget(self) -> None:
        """The same, and forgets where they came from."""
        self.drop()
        self.place = None

    def _read(self, trainer: Any, value: torch.Tensor | None, place: str) -> list[float]:
        (number,) = self._metric.agree(trainer, [value])
        if number is None:
            return []
        self.place = place
        return [number]

    def state_dict(self, trainer: Any) -> dict[str, Any]:
        """Where the metric comes from, and the values that nobody has read yet.

        Args:
            trainer: None after an exception: the other ranks may not be here, so the values are those of this one.
        """
        if trainer is None:
            waiting = [None if value is None else float(value) for value in self._updates]
        else:
            waiting = self._metric.agree(trainer, self._updates) if self._updates else []
        return {
            "produced": self.place,
            "waiting": waiting,
            "micro_batches": [float(value) for value in self._micro_batches],
            "stepped": self._stepped,
            "asked": self._asked,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self.place, self._stepped, self._asked = saved["produced"], saved["stepped"], saved["asked"]
        self._updates = [
            None if number is None else torch.tensor(number, dtype=torch.float64) for number in saved["waiting"]
        ]
        self._micro_batches = [torch.tensor(number) for number in saved["micro_batches"]]
