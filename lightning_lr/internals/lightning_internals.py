"""Lightning internals: what this package reads of Lightning, and sets in it, that is not public."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning_utilities.core import rank_zero
from torch import Tensor, nn

SKIPS = {"EarlyStopping": "_should_skip_check", "ModelCheckpoint": "_should_skip_saving_checkpoint"}
"""By class name, since Lightning has each class under two package names: the method that decides to skip a check."""

DEFERRED = "_defer_save_until_validation"
"""Where a `ModelCheckpoint` notes that a save waits for a metric; Lightning has it since 2.6."""


def epoch_loop(trainer: Any) -> Any:
    """The loop over the batches of a training epoch."""
    return trainer.fit_loop.epoch_loop


def is_kind(thing: Any, *kinds: str) -> bool:
    """Whether one of its classes has such a name and is Lightning's, in either namespace."""
    return any(kind.__name__ in kinds and _lightnings(kind) for kind in type(thing).__mro__)


def _lightnings(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("lightning", "pytorch_lightning")


def loggers_step(trainer: Any) -> int:
    """The current step on the axis that Lightning's own `self.log` writes to."""
    return epoch_loop(trainer)._batches_that_stepped


def logs_now(trainer: Any) -> bool:
    """Whether Lightning writes to its loggers at this batch."""
    return trainer._logger_connector.should_update_logs


def file_writer(logger: Any) -> Any:
    """What writes summaries of any kind into a logger's event file of TensorBoard.

    None for a logger of another kind, and for the stand-in on other ranks and in a `fast_dev_run`.
    """
    get: Any = getattr(getattr(logger, "experiment", None), "_get_file_writer", None)
    writer = get() if callable(get) else None
    # tensorboardX uses the same names, with protobuf classes of its own
    known = type(getattr(writer, "event_writer", None)).__module__.startswith("tensorboard.")
    return writer if known else None


def show_metrics(trainer: Any, values: dict[str, Tensor]) -> None:
    """Puts values into `trainer.callback_metrics`, whose property would first compute all metrics anew."""
    trainer._logger_connector._callback_metrics.update(values)


def callback_metrics(trainer: Any) -> dict[str, Any]:
    """`trainer.callback_metrics` as last computed."""
    return trainer._logger_connector._callback_metrics


def results(trainer: Any) -> dict[str, Any] | None:
    """What the running loop's `self.log` has gathered, by key; None between loops."""
    return trainer._results


def training_results(trainer: Any) -> dict[str, Any]:
    """What the training epoch's `self.log` has gathered, by key."""
    return epoch_loop(trainer)._results


def logged_value(gathered: Any, result: Any, *, on_step: bool) -> Tensor | None:
    """One gathered value, of the latest batch or of the epoch that has just ended; None where there is none."""
    return result._forward_cache if on_step else gathered._get_cache(result, False)


def forget_step_value(result: Any) -> None:
    """Forgets a gathered value of the latest batch; the epoch's value stays."""
    result._forward_cache = None


def restarted_before_validation(trainer: Any) -> bool:
    """Whether the run was resumed from a checkpoint saved after an epoch's last batch and before its validation."""
    loop = epoch_loop(trainer)
    return loop.restarted_on_train_batch_end and loop.batch_progress.is_last_batch


def restarted_in_validation(trainer: Any) -> bool:
    """Whether the run was resumed from a checkpoint saved in the middle of a validation."""
    loop = epoch_loop(trainer)
    progress = loop.val_loop.batch_progress
    whole = progress.current.ready if progress.is_last_batch else None
    return loop.restarting and progress.current.completed not in (0, whole)


def loop_wants_batch(trainer: Any) -> bool:
    """Whether the training loop is between two batches: it converts the next batch before it counts it as ready."""
    progress = epoch_loop(trainer).batch_progress.current
    return trainer.training and progress.ready == progress.completed


def step_fetches_itself(trainer: Any) -> bool:
    """Whether `training_step(self, dataloader_iter)` fetches its batches, so that the loop never holds one."""
    return is_kind(trainer.fit_loop._data_fetcher, "_DataLoaderIterDataFetcher")


def lightnings_log() -> Any:
    """The logger of Lightning's console messages."""
    return rank_zero.log


class Average:
    """An average of the weights that one of Lightning's callbacks keeps; empty until weights were added.

    Args:
        callback: the callback, `StochasticWeightAveraging` or `WeightAveraging`.
    """

    def __init__(self, callback: Any) -> None:
        self._callback, self.model = callback, callback._average_model
        self._counted = self.model if is_kind(callback, "WeightAveraging") else callback

    @property
    def count(self) -> Tensor:
        """How many times weights were added; Tensor, shape ()."""
        count = self._counted.n_averaged
        # until the first epoch that it averages in, SWA has only a number, in a resumed run too
        return torch.tensor(self._callback._init_n_averaged) if count is None else count

    @count.setter
    def count(self, count: Tensor) -> None:
        if self._counted.n_averaged is None:
            self._callback._init_n_averaged = int(count)
        else:
            self._counted.n_averaged.copy_(count)

    def add(self, module: nn.Module) -> None:
        """Adds the weights of a model."""
        if self._counted is self.model:
            self.model.update_parameters(module)
            return
        count = self.count
        self._callback.update_parameters(self.model, module, count, self._callback._avg_fn)
        self.count = count


def averages(callbacks: Iterable[Any]) -> list[Average]:
    """The averages of the weights that callbacks keep beside the trained model."""
    kinds = ("StochasticWeightAveraging", "WeightAveraging")
    return [Average(one) for one in callbacks if is_kind(one, *kinds) and one._average_model is not None]
