"""`PlateauDecay`: the learning rate falls when a metric has stopped improving."""

from __future__ import annotations

import math
from typing import Any, Literal

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from lightning_lr.arguments import real_number, whole_number
from lightning_lr.callbacks.base import LRCallback
from lightning_lr.console import count
from lightning_lr.internals import restarted_before_validation, restarted_in_validation, results, training_results
from lightning_lr.policies.plateau import CHECKS_PER_WINDOW, PlateauPolicy, PlateauState
from lightning_lr.signals import missing_metric
from lightning_lr.signals.metric import MetricError, logged_names
from lightning_lr.signals.metric_name import looks_like_a_score, of_validation
from lightning_lr.signals.metric_source import MetricSource


class PlateauDecay(LRCallback):
    """Multiplies every learning rate by `factor` each time a metric has stopped improving.

    It works on top of any scheduler, of `Warmup` and of `Cooldown`. While the rate warms up or cools down, no check
    counts against it; nor does any after sweeps of `LRFinder` that found no rate, because the present rate may then be
    too low already.

    The metric may be logged in validation, at the end of a training epoch, or at every training step. It is checked
    when it is produced (except during the sanity check), before checkpoints are saved, as the mean over all ranks. A
    value that is not finite never counts as a bad check.

    Args:
        monitor: the name of the metric, as logged. If it is logged with `on_step=True, on_epoch=True`, the epoch's
            value is taken; `<name>_step` takes the value of every step. If a name is logged in training and in
            validation, the training value is taken.
        mode: `min` if lower is better, `max` if higher is. None: `min`, except for a metric whose name is that of a
            score (accuracy, F1, AUROC, reward, ...): then nothing is checked until you give the mode, and a warning
            says so.
        factor: the ratio of the new rate to the old one, in (0, 1).
        patience: how many bad checks in a row are tolerated, >= 0; with `test="trend"` the length of the window in
            values, >= 3.
        threshold: the least improvement that counts, >= 0: a ratio below 1 (`rel`) or absolute (`abs`); `trend` does
            not use it.
        threshold_mode: `rel` (relative to the best value) or `abs`.
        cooldown: how many checks are passed over after each decay, >= 0.
        min_lr: no decay goes below this rate (absolute, >= 0); a scheduler may.
        max_decays: after this many decays, >= 0, the next plateau asks the trainer to stop; None: never.
        test: `patience` gives the verdicts of `torch.optim.lr_scheduler.ReduceLROnPlateau`. `trend` asks whether a
            noisy series has stopped falling, as dlib does; it is meant for the training loss of every step, with a
            patience of hundreds.
        optimizer: the index of the only optimizer whose rates decay; None: those of all optimizers. In a GAN one metric
            says nothing about one of the two: give each optimizer its own `PlateauDecay`, or leave it out.
        name: the name under which the factor is kept and shown; by default the class's own. A second `PlateauDecay` in
            the same trainer needs another: `PlateauDecay("train_loss", name="Other")`.

    Raises:
        ValueError: at construction, for a value outside its bounds; at the start of `fit`, for an optimizer that the
            run doesn't have.
        MetricError: at the start of an epoch, if one has ended, validation has run (where there is any), and no metric
            of that name was logged; on every rank, if some ranks logged it and others did not.

    Source: torch's `ReduceLROnPlateau`; dlib's `dnn_trainer` for `trend`.

    Example:
        >>> from lightning_lr import PlateauDecay
        >>> PlateauDecay("val_loss", factor=0.5, patience=3).name
        'PlateauDecay'
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        mode: Literal["min", "max"] | None = None,
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: int = 0,
        min_lr: float = 0.0,
        max_decays: int | None = None,
        test: Literal["patience", "trend"] = "patience",
        optimizer: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.keep_arguments(locals())
        if not isinstance(monitor, str) or not monitor:
            raise ValueError(f"monitor must be the name of a logged metric, got {monitor!r}")
        self.decay_factor = real_number("factor", factor, "(0, 1)", "to keep the rate, leave PlateauDecay out")
        self.min_lr = real_number("min_lr", min_lr, "[0, inf)")
        if max_decays is not None:
            max_decays = whole_number("max_decays", max_decays, 0, "None never asks the trainer to stop")
        if optimizer is not None:
            optimizer = whole_number("optimizer", optimizer, 0, "it is an index, or None for all")
        self.optimizer = optimizer
        self.mode = mode
        self._mode_unknown = mode is None and looks_like_a_score(monitor)
        assumed = "min" if mode is None else mode
        self.policy = PlateauPolicy(assumed, patience, threshold, threshold_mode, cooldown, test)
        self.monitor, self.max_decays = monitor, max_decays
        self._values_per_check = 1 if test == "patience" else max(1, self.policy.patience // CHECKS_PER_WINDOW)
        self.reset()

    def reset(self) -> None:
        self.state = PlateauState()
        self._source = MetricSource(self.monitor, self._values_per_check)
        self._idle = False
        self._validated = self._epoch_over = False
        self._groups: list[int] = []
        self._not_finite = 0
        self._told = self._without_validation = False

    def rewound(self, rewinds: int) -> None:
        self.forget()

    def forget(self) -> None:
        """Drops the checks that count against the rate, for example because they were made before a rewind."""
        self.state = self.policy.forget(self.state)
        self._source.drop()

    def started(self, trainer: Any, pl_module: Any) -> None:
        self._without_validation = not trainer.enable_validation and of_validation(self.monitor)
        self._idle = not self.ledger.optimizers
        if self._idle:
            return
        count = len(self.ledger.optimizers)
        if self.optimizer is not None and self.optimizer >= count:
            raise ValueError(
                f"{self.name}(optimizer={self.optimizer}) names no optimizer of this run, which has {count}: they count from "
                f"0, so write {self.written(optimizer=0)}"
            )
        if self._mode_unknown:
            rank_zero_warn(missing_metric.without_mode(self))
        elif self._without_validation:
            rank_zero_warn(missing_metric.without_validation(self))
        self._groups = [self.ledger.groups(optimizer) for optimizer in range(len(self.ledger.optimizers))]
        if self._source.may_be("validation") and restarted_in_validation(trainer):
            rank_zero_warn(
                f"the checkpoint was saved in the middle of a validation, of which Lightning makes only the rest on "
                f"resume, or nothing: {self.name} checks a value of that rest, or none"
            )
        if self._source.place == "validation" and restarted_before_validation(trainer):
            rank_zero_warn(
                f"the checkpoint was saved at the end of an epoch before its validation, which Lightning passes over "
                f"on resume: {self.name} makes no check for that epoch. One saved on validation or on the epoch's end "
                f"resumes exactly"
            )

    # when the metric comes -------------------------------------------------------------------------------------

    def before_update(self, optimizer: int) -> None:
        if not self._means(optimizer):
            return
        groups = self.ledger.groups(optimizer)
        for group in range(self._groups[optimizer], groups) if self.min_lr > 0.0 else ():
            # a group that was added since starts with all decays so far, and has its own floor
            factor = self._floored(optimizer, group, self.ledger.factor(self.name, optimizer, group), 1.0)
            reason = f"{self.state.decays} decays so far, down to min_lr at most"
            self.ledger.set_factor(self.name, factor, reason, optimizer=optimizer, group=group)
        self._groups[optimizer] = groups

    def after_update(self, optimizer: int) -> None:
        self._source.after_update()

    def _means(self, optimizer: int) -> bool:
        return self.optimizer in (None, optimizer)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self._check_late()
        self._source.begin_epoch()
        if self._misses_metric and self._epoch_over and (self._validated or not trainer.enable_validation):
            raise MetricError(missing_metric.after_an_epoch(self, sorted(trainer.callback_metrics)))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not self._mode_unknown:
            self._check(trainer, self._source.after_batch(trainer))
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn != "fit":
            return
        if not trainer.sanity_checking:
            self._validated = True
            if not self._mode_unknown:
                self._check(trainer, self._source.after_validation(trainer))
        if self._misses_metric and not self._told:
            training = logged_names(training_results(trainer))
            words = missing_metric.after_validation(self, logged_names(results(trainer)), training)
            if words is not None:
                self._told = True
                rank_zero_warn(words)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if not self._mode_unknown:
            self._check(trainer, self._source.after_epoch(trainer))
        self._epoch_over = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._check_late()
        if self._misses_metric:
            rank_zero_warn(f"{self.name} monitors {self.monitor!r}, which was never logged: it changed no rate")
        super().on_train_end(trainer, pl_module)

    @property
    def _misses_metric(self) -> bool:
        """Whether no value has come yet, and nothing was said about that at the start."""
        silent = self._mode_unknown or self._without_validation or self._idle
        return self._source.place is None and not silent

    def _check_late(self) -> None:
        trainer = self.run.trainer
        self._check(trainer, self._source.late(trainer))

    # what it means ---------------------------------------------------------------------------------------------

    def _check(self, trainer: Any, values: list[float]) -> None:
        for value in values:
            self._check_one(trainer, value)

    def _check_one(self, trainer: Any, value: float) -> None:
        if not math.isfinite(value):
            self._not_finite += 1
            if self._not_finite == 1:
                self.journal.say(f"{self.name}: {self.monitor} is {value}: not counted as a check", self.name)
            return
        if self._not_finite > 1:
            self.journal.say(f"{self.name}: {self.monitor} is finite again after {self._not_finite} values", self.name)
        self._not_finite = 0
        resting = any(peer.settling or peer.found_nothing for peer in self.run.peers)
        best = self.state.best
        self.state, decay = self.policy.step(self.state, value, resting=resting)
        if not decay:
            return
        if self.policy.test == "trend":
            reason = f"{self.monitor} shows no trend to improve over {self.policy.patience} values, now {value:.6g}"
        else:
            checks = count(self.policy.patience + 1, "check")
            reason = f"{self.monitor} {value:.6g} is no better than {best:.6g} for {checks}"
        if self.max_decays is not None and self.state.decays > self.max_decays:
            if self.state.decays == self.max_decays + 1:
                line = f"{self.name} asks the trainer to stop after {count(self.max_decays, 'decay')}: {reason}"
                self.journal.say(line, self.name)
                rank_zero_info(line)
            trainer.should_stop = True
            return
        self._decay(reason)

    def _decay(self, reason: str) -> None:
        ledger = self.ledger
        for optimizer in filter(self._means, range(len(ledger.optimizers))):
            now = [ledger.factor(self.name, optimizer, group) for group in range(ledger.groups(optimizer))]
            factors = [self._floored(optimizer, group, factor, self.decay_factor) for group, factor in enumerate(now)]
            # also what a group that is added later starts from
            ledger.set_factor(self.name, self.decay_factor**self.state.decays, reason, optimizer=optimizer)
            for group, factor in enumerate(factors):
                ledger.set_factor(self.name, factor, reason, optimizer=optimizer, group=group)

    def _floored(self, optimizer: int, group: int, factor: float, times: float) -> float:
        base = self.ledger.base(optimizer, group)
        floor = self.min_lr / base if base > 0.0 else 0.0
        return min(factor if times < 1.0 else 1.0, max(factor * times, floor))

    # state -----------------------------------------------------------------------------------------------------

    def own_state(self) -> dict[str, Any]:
        """The policy's state, and the values that wait for the next check."""
        if not self.run.failed:
            self._check_late()
        source = self._source.state_dict(None if self.run.failed else self.run.trainer)
        return {"policy": self.state.to_dict(), **source}

    def load_own_state(self, state: dict[str, Any]) -> None:
        self.state = PlateauState.from_dict(state["policy"])
        self._source.load_state_dict(state)
        # None and "min" are one mode
        other_mode = "max" in self.changed.get("mode", ())
        other_window = self.policy.test == "trend" and "patience" in self.changed
        if other_mode or other_window or self.changed.keys() & {"monitor", "test", "threshold_mode"}:
            # the values so far can't be compared with the new ones, but the decays were made
            self.state = PlateauState(decays=self.state.decays)
            self._source.forget()
