"""A monitored metric: read when it is produced, and made equal on all ranks."""

from __future__ import annotations

from typing import Any

import torch

from lightning_lr.internals import logged_value, results
from lightning_lr.signals.norms import moved, widest_float


class MetricError(RuntimeError):
    """A monitored metric is missing, on one rank or on all."""


class Metric:
    """One metric by the name under which it was logged.

    Args:
        name: as given to `self.log`. A metric logged both on step and on epoch is taken on epoch; its `..._step` name
            is taken on every step.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._last: Any = None

    def produced(self, trainer: Any, *, on_step: bool) -> torch.Tensor | None:
        """The value that the running loop has just produced; None if it has not logged this metric now.

        Args:
            trainer: within `on_train_batch_end` (`on_step=True`), or within `on_validation_end` or
                `on_train_epoch_end` (False).
            on_step: whether to take the value of a batch, or of an epoch.

        Returns:
            Tensor, shape (), on the metric's own device; the caller reads it.
        """
        gathered = results(trainer)
        if gathered is None:
            return None
        for result in gathered.values():
            if result.has_reset or self.name not in _names(result.meta, on_step):
                continue
            value = logged_value(gathered, result, on_step=on_step)
            # a value of an earlier batch stays in the cache, and counts once
            if value is None or (on_step and value is self._last):
                continue
            self._last = value
            return value.detach()
        return None

    def kept(self, trainer: Any) -> torch.Tensor | None:
        """The value that the trainer keeps of the last epoch; None if it was returned before."""
        value = trainer.callback_metrics.get(self.name)
        if value is None or value is self._last:
            return None
        self._last = value
        return value.detach()

    def agree(self, trainer: Any, values: list[torch.Tensor | None]) -> list[float | None]:
        """The values as plain numbers, each the mean over the ranks and equal on all of them.

        One host sync, and with several processes one small collective, for all values together. Every rank must call it
        with equally many values.

        Args:
            trainer: the trainer that runs.
            values: each a tensor of shape (), or None where the metric was not logged.

        Raises:
            MetricError: on every rank, when some ranks logged a value that others did not.
        """
        several, device = trainer.world_size > 1, trainer.strategy.root_device
        if not several and all(value is None for value in values):
            return [None] * len(values)
        wide = widest_float(device)
        there = [value is not None for value in values]
        zero = torch.zeros((), dtype=wide, device=device)
        numbers = torch.stack([zero if v is None else moved(v.reshape(()), device).to(wide) for v in values])
        if several:
            present = torch.tensor(there, dtype=wide, device=device)
            table = trainer.strategy.all_gather(torch.stack([present, numbers]))
            table = table.reshape(trainer.world_size, 2, len(values)).cpu().double()
            present, numbers = table[:, 0], table[:, 1].mean(dim=0)
            lacking = [rank for rank in range(trainer.world_size) if not present[rank].equal(present.amax(dim=0))]
            if lacking:
                raise MetricError(
                    f"the monitored metric {self.name!r} must be logged on every rank alike, but rank "
                    f"{', '.join(map(str, lacking))} did not log it when others did: log it on all of them"
                )
            there = present[0].bool().tolist()
        return [number if is_there else None for number, is_there in zip(numbers.tolist(), there, strict=True)]


def logged_names(gathered: dict[str, Any] | None) -> list[str]:
    """Every name under which a metric of a loop can be monitored, sorted.

    Args:
        gathered: what the loop's `self.log` has gathered; None where no loop runs.
    """
    found: set[str] = set()
    for result in () if gathered is None else gathered.values():
        if not result.has_reset:
            found.update(_names(result.meta, True), _names(result.meta, False))
    return sorted(found)


def _names(meta: Any, on_step: bool) -> tuple[str, ...]:
    one_of_several = meta.add_dataloader_idx and meta.dataloader_idx is not None
    name = f"{meta.name}/dataloader_idx_{meta.dataloader_idx}" if one_of_several else meta.name
    if on_step:
        return (f"{name}_step" if meta.on_epoch else name,) if meta.on_step else ()
    return (name, f"{name}_epoch" if meta.on_step else name) if meta.on_epoch else ()
