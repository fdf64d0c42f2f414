"""`LRMonitor`: every effective learning rate in every logger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from lightning_lr.callbacks.base import LRCallback
from lightning_lr.internals import logs_now, show_metrics
from lightning_lr.monitoring.losses import Losses
from lightning_lr.monitoring.picture import draw, sentence_and_table
from lightning_lr.monitoring.update_ratios import UpdateRatios
from lightning_lr.rates.change import RateChange
from lightning_lr.record.pages import write_layout

if TYPE_CHECKING:
    from lightning_lr.monitoring.remembered_story import RememberedStory

LINES = 8
"""How many of the latest lines of the story a notebook shows."""


class LRMonitor(LRCallback):
    """Shows every effective learning rate, and every change of it with its cause, in all of the trainer's loggers.

    It is a drop-in replacement for `LearningRateMonitor`, with the same arguments and the same tags: `lr-AdamW`,
    `lr-AdamW/pg1`, or the `name` of a scheduler or param group. A rate is written when it changes, at that very update,
    not every `log_every_n_steps`; the first and the last rate are always written. Loggers other than TensorBoard and
    the CSV file, where a point may be a request, get a rate that changes at every update at `log_every_n_steps`.

    It also writes `lr-factor/<callback>`, one curve for each callback, and the text `lr-events`: step, optimizer and
    group, old rate -> new rate, cause. Without a logger the same record is in `rates`, `changes` and `story`, and
    `plot()` draws it.

    Args:
        logging_interval: Lightning's argument, `step`, `epoch` or None. It has no effect, because rates are written
            when they change.
        log_momentum: Lightning's name for `momentum`.
        log_weight_decay: Lightning's name for `weight_decay`.
        momentum: also write `<tag>-momentum` (`momentum`, or the first of `betas`).
        weight_decay: also write `<tag>-weight_decay`.
        update_ratio: also write `lr-update/<module>` every `log_every_n_steps`: the 2-norm of what an update has added
            to the weights of a module, divided by the 2-norm of these weights. There is one curve for each module that
            holds trained parameters itself (by layer if there are more than 100), and `lr-update/all`; with several
            optimizers, one `lr-update/all/<tag>` each. This ratio is what the rate of an adaptive method amounts to. As
            a rough rule about 1e-3 is usual (Source: CS231n's notes, Neural Networks Part 3): a tenth of that suggests
            a low rate, ten times that a high one. It is measured on up to 4,096 elements of each tensor, spread over
            it, so for large tensors it is an estimate.
        prog_bar: also show the rates in the progress bar.
        layout: write a layout for TensorBoard's custom scalars page: rates, factors and losses together. It replaces
            a layout that you wrote yourself.
        name: the name under which its state is kept; by default the class's own. A second `LRMonitor` in the same
            trainer needs another: `LRMonitor(name="Other")`.

    Raises:
        ValueError: at construction, for a `logging_interval` or `update_ratio` that is none of the values above; at the
            start of `fit`, if the trainer has a `LearningRateMonitor` too.

    Example:
        >>> from lightning_lr import LRMonitor
        >>> LRMonitor(momentum=True).rates
        {}
    """

    has_factor = False
    monitors = True

    def __init__(
        self,
        logging_interval: Literal["step", "epoch"] | None = None,
        log_momentum: bool = False,
        log_weight_decay: bool = False,
        *,
        momentum: bool = False,
        weight_decay: bool = False,
        update_ratio: bool = False,
        prog_bar: bool = False,
        layout: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.keep_arguments(locals())
        if logging_interval not in (None, "step", "epoch"):
            raise ValueError(
                f"logging_interval must be None, 'step' or 'epoch', got {logging_interval!r}: leave it out, rates are "
                f"written when they change"
            )
        if not isinstance(update_ratio, bool):
            raise ValueError(
                f"update_ratio must be True or False, got {update_ratio!r}: it is written at every log_every_n_steps, "
                f"an argument of the Trainer"
            )
        self.logging_interval = logging_interval
        self.update_ratio = update_ratio
        self._ratios: UpdateRatios | None = None
        self._losses = Losses()
        self.momentum, self.weight_decay = momentum or log_momentum, weight_decay or log_weight_decay
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

    def plot(self) -> Any:
        """The last `fit` as a picture, from memory: with or without a logger, during the run, and after it failed.

        It shows the effective rates by param group (on a logarithmic axis; rates that change in steps are drawn in
        steps), the factors of the callbacks, and the losses that were logged, or else what `training_step` returned,
        at the trainer's logging steps. Changes, incidents and sweeps are marked. Spikes of a loss don't flatten the
        curve: they are marked at the edge.

        Returns:
            A `matplotlib.figure.Figure`.

        Raises:
            RuntimeError: before any update was made.
        """
        story = self._remembered()
        if story is None or not story.has_data:
            raise RuntimeError(
                f"{self.name} has nothing to show yet: no update was made in a trainer.fit with it among the callbacks"
            )
        return draw(story, story.sentence)

    def _repr_html_(self) -> str:
        """What a notebook shows: how the run is doing, the rates, and what happened last."""
        story = self._remembered()
        if story is None or not story.has_data:
            return sentence_and_table(f"{self!r}: no update was made yet.", {}, ())
        return sentence_and_table(story.sentence, self.rates, list(self.story)[-LINES:])

    def _remembered(self) -> RememberedStory | None:
        if self._run is None:
            return None
        # TensorBoard's classes take a while to import
        from lightning_lr.monitoring.remembered_story import RememberedStory

        factors = [peer.name for peer in self._run.peers if peer.has_factor]
        return RememberedStory(self._run.journal, list(self.rates), factors, self._losses.series)

    def reset(self) -> None:
        self._losses = Losses()

    def started(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.loggers:
            monitor = f"your {type(self).__name__}" if self.option is None else "autopilot(...)[-1]"
            rank_zero_info(
                f"{self.name}: the trainer has no logger, so nothing is written. The record is in monitor.story, "
                f"monitor.changes and monitor.rates, where monitor is {monitor}"
            )
        if self.logging_interval is not None:
            rank_zero_info(
                f"{self.written(logging_interval=self.logging_interval)}: logging_interval has no effect, rates are "
                f"written when they change; leave it out"
            )
        self._ratios = UpdateRatios(self.run, pl_module) if self.update_ratio else None
        if self.layout:
            tags = (name.tag for names in self.run.names for name in names)
            write_layout(trainer.loggers if trainer.is_global_zero else (), tags, ratios=self.update_ratio)
        groups = [group for optimizer in self.ledger.optimizers for group in optimizer.param_groups]
        if self.momentum and any(_momentum(group) is None for group in groups):
            wanted = self.written(momentum=True)
            rank_zero_warn(f"{wanted}: some optimizers have no momentum; nothing is written for them")

    def gradients_ready(self, optimizer: int) -> None:
        if self._ratios is not None:
            self._ratios.before(optimizer)

    def after_update(self, optimizer: int) -> None:
        if self._ratios is not None:
            self.journal.scalars(self._ratios.after(optimizer))
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
        if logs_now(trainer):
            if not any(peer.trying for peer in self.run.peers):
                self._losses.after_batch(trainer, self.journal.step, outputs)
            show_metrics(trainer, {tag: torch.tensor(rate) for tag, rate in self.rates.items()})
        if self.prog_bar:
            for tag, rate in self.rates.items():
                pl_module.log(tag, rate, prog_bar=True, logger=False, on_step=True, on_epoch=False)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self._losses.after_epoch(trainer, self.journal.step)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._losses.after_epoch(trainer, self.journal.step)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_end(trainer, pl_module)
        self._losses.after_epoch(trainer, self.journal.step)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._ratios = None
        super().on_exception(trainer, pl_module, exception)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        # its views would keep the memory of weights that are moved off the device now
        self._ratios = None
        super().teardown(trainer, pl_module, stage)

    def __getstate__(self) -> dict[str, Any]:
        # what a run has refers to its optimizers
        return {**super().__getstate__(), "_ratios": None}


def _momentum(group: dict[str, Any]) -> Any:
    betas = group.get("betas")
    return group.get("momentum") if betas is None else betas[0]
