"""`LRMonitor`: every effective rate in every logger."""

from __future__ import annotations

from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_lr.callbacks.base import LRCallback
from lightning_lr.change import RateChange


class LRMonitor(LRCallback):
    """Shows every effective rate and every change of it, with its cause, in all of the trainer's loggers.

    A drop-in for `LearningRateMonitor`, with the same tags: `lr-AdamW`, `lr-AdamW/pg1`, a scheduler's or a param
    group's own `name`. Rates are written when they change, at the very update, and not at every `log_every_n_steps`;
    the first and the last rate always are. Beside them `lr-factor/<callback>`, one curve for each callback, and the
    text `lr-events`: step, optimizer and group, old rate -> new rate, cause.

    Args:
        momentum: also write `<tag>-momentum` (`momentum`, or the first of `betas`).
        weight_decay: also write `<tag>-weight_decay`.
        prog_bar: also show the rates in the progress bar.
        layout: write a layout for TensorBoard's custom scalars page: rates, factors and losses together. It replaces
            one that you wrote yourself.
        name: under which its state is kept; by default the class's own.

    Raises:
        ValueError: at the start of `fit` when the trainer has no logger, or has a `LearningRateMonitor` too.

    Example:
        >>> from lightning_lr import LRMonitor
        >>> LRMonitor(momentum=True).rates
        {}
    """

    has_factor = False
    monitors = True

    def __init__(
        self,
        *,
        momentum: bool = False,
        weight_decay: bool = False,
        prog_bar: bool = False,
        layout: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.keep_arguments(locals())
        self.momentum, self.weight_decay = momentum, weight_decay
        self.prog_bar, self.layout = prog_bar, layout

    @property
    def rates(self) -> dict[str, float]:
        """The effective rates of the last update, absolute, by tag; empty before the first `fit`."""
        return {} if self._run is None else self._run.rates()

    @property
    def changes(self) -> list[RateChange]:
        """Every change of every rate in the last `fit`, oldest first (the latest ten thousand)."""
        return [] if self._run is None else list(self._run.journal.changes)

    @property
    def story(self) -> list[str]:
        """The last `fit`'s lines of `lr-events`, oldest first (the latest thousand), on every rank."""
        return [] if self._run is None else list(self._run.journal.story)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not trainer.loggers:
            raise ValueError(
                "LRMonitor needs a logger to write to, but the trainer has none: leave out Trainer(logger=False), or "
                "LRMonitor (the other callbacks work without a logger)"
            )

    def started(self, trainer: Any, pl_module: Any) -> None:
        if self.layout:
            self.journal.layout(name.tag for names in self.run.names for name in names)
        if self.momentum and not all(_momentum(g) is not None for o in self.ledger.optimizers for g in o.param_groups):
            rank_zero_warn("LRMonitor(momentum=True): some optimizers have no momentum; nothing is written for them")

    def after_update(self, optimizer: int) -> None:
        if not (self.momentum or self.weight_decay):
            return
        values = {}
        groups = self.ledger.optimizers[optimizer].param_groups
        for name, group in zip(self.run.names[optimizer], groups, strict=False):
            momentum, decay = _momentum(group), group.get("weight_decay")
            if self.momentum and momentum is not None:
                values[f"{name.tag}-momentum"] = float(momentum)
            if self.weight_decay and decay is not None:
                values[f"{name.tag}-weight_decay"] = float(decay)
        self.journal.scalars(values)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        connector = trainer._logger_connector
        if connector.should_update_logs:
            # trainer.callback_metrics is this very dict, but computes all metrics anew each time that it is asked for
            connector._callback_metrics.update({tag: torch.tensor(rate) for tag, rate in self.rates.items()})
        if self.prog_bar:
            for tag, rate in self.rates.items():
                pl_module.log(tag, rate, prog_bar=True, logger=False, on_step=True, on_epoch=False)


def _momentum(group: dict[str, Any]) -> Any:
    betas = group.get("betas")
    return group.get("momentum") if betas is None else betas[0]
