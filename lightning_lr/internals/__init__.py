"""All that this package takes of Lightning, torch and torchmetrics beyond their public API: here, and nowhere else.

Each name is looked for at the start of every run, so that a release that renames one is told by name, before training,
and never met as a wrong rate in its middle.
"""

from __future__ import annotations

import functools
import importlib.metadata
import sys
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torchmetrics
from lightning_utilities.core import rank_zero
from torch import Tensor, nn
from torch.optim import Optimizer

TESTED = "pytorch-lightning and lightning 2.5.0 and 2.6.6 with torch 2.13.0 and torchmetrics 1.9.0"
"""The releases that the tests run with."""

PACKAGES = ("pytorch-lightning", "lightning", "torch", "torchmetrics")


class Internal(NamedTuple):
    """One name that is not public.

    Args:
        owner: whose it is, for the error.
        name: the attribute.
        holder: gives the object that must have it, for a trainer; None where this run has no such object.
    """

    owner: str
    name: str
    holder: Callable[[Any], Any]


def _epoch_loop(trainer: Any) -> Any:
    return trainer.fit_loop.epoch_loop


@functools.cache
def _metric(kind: type = torchmetrics.MeanMetric) -> Any:
    return kind()


def _result(trainer: Any) -> Any:
    """A metric of Lightning's own, as `self.log` makes them."""
    module = importlib.import_module(type(_epoch_loop(trainer)._results).__module__)
    return _logged(module._ResultMetric, module._Metadata)


@functools.cache
def _logged(result: Any, metadata: Any) -> Any:
    return result(metadata("training_step", "loss"), is_tensor=True)


@functools.cache
def _scaler_step(_: Any) -> Any:
    """The names that a gradient scaler gives, or asks of, an optimizer that unscales its gradients itself."""
    code = torch.amp.GradScaler.step.__code__
    return SimpleNamespace(**{name: True for name in (*code.co_names, *code.co_consts) if isinstance(name, str)})


def _of_kind(*kinds: str) -> Callable[[Any], Any]:
    def first(trainer: Any) -> Any:
        return next((c for c in trainer.callbacks if is_kind(c, *kinds)), None)

    return first


def _summary_writer(_: Any) -> Any:
    # where nobody has imported it there is nothing to be written with it
    return getattr(sys.modules.get("torch.utils.tensorboard"), "SummaryWriter", None)


SKIPS = {"EarlyStopping": "_should_skip_check", "ModelCheckpoint": "_should_skip_saving_checkpoint"}
"""By the name of the class, which Lightning has under two names: the method by which it passes an occasion over."""

DEFERRED = "_defer_save_until_validation"
"""Where a `ModelCheckpoint` notes that a save waits for a metric; Lightning has it since 2.6."""

INTERNALS = (
    Internal("Trainer", "_results", lambda trainer: trainer),
    Internal("Trainer", "_logger_connector", lambda trainer: trainer),
    Internal("Trainer._logger_connector", "should_update_logs", lambda trainer: trainer._logger_connector),
    Internal("Trainer._logger_connector", "_callback_metrics", lambda trainer: trainer._logger_connector),
    Internal("Trainer.fit_loop", "_data_fetcher", lambda trainer: trainer.fit_loop),
    Internal("Trainer.precision_plugin", "convert_input", lambda trainer: trainer.precision_plugin),
    Internal("Trainer.fit_loop.epoch_loop", "_batches_that_stepped", _epoch_loop),
    Internal("Trainer.fit_loop.epoch_loop", "_results", _epoch_loop),
    Internal("Trainer.fit_loop.epoch_loop", "min_steps", _epoch_loop),
    Internal("Trainer.fit_loop.epoch_loop", "val_loop", _epoch_loop),
    Internal("Trainer.fit_loop.epoch_loop", "restarting", _epoch_loop),
    Internal("Trainer.fit_loop.epoch_loop", "restarted_on_train_batch_end", _epoch_loop),
    Internal("Trainer.fit_loop.epoch_loop", "batch_progress", _epoch_loop),
    Internal("Trainer.fit_loop.epoch_loop.val_loop", "batch_progress", lambda trainer: _epoch_loop(trainer).val_loop),
    Internal("_ResultCollection", "_get_cache", lambda trainer: _epoch_loop(trainer)._results),
    Internal("_ResultMetric", "has_reset", _result),
    Internal("_ResultMetric", "is_tensor", _result),
    Internal("_ResultMetric", "meta", _result),
    *(
        Internal("_ResultMetric.meta", name, lambda trainer: _result(trainer).meta)
        for name in ("name", "on_step", "on_epoch", "add_dataloader_idx", "dataloader_idx")
    ),
    *(
        Internal("StochasticWeightAveraging", name, _of_kind("StochasticWeightAveraging"))
        for name in ("_average_model", "n_averaged", "_init_n_averaged", "update_parameters", "_avg_fn")
    ),
    Internal("WeightAveraging", "_average_model", _of_kind("WeightAveraging")),
    *(Internal(kind, name, _of_kind(kind)) for kind, name in SKIPS.items()),
    Internal("torch.utils.tensorboard.SummaryWriter", "_get_file_writer", _summary_writer),
    Internal("lightning_utilities.core.rank_zero", "log", lambda _: rank_zero),
    *(
        Internal("torchmetrics.Metric", name, lambda _: _metric())
        for name in ("_defaults", "_update_count", "_computed", "_forward_cache")
    ),
    *(
        Internal("torch.amp.GradScaler", name, lambda trainer: scaler_in_use(trainer))
        for name in ("_scale", "_growth_tracker")
    ),
    *(
        Internal("torch.amp.GradScaler.step's optimizer", name, _scaler_step)
        for name in ("found_inf", "_step_supports_amp_scaling")
    ),
    *(Internal("torch", name, lambda _: torch) for name in ("_foreach_copy_", "_foreach_norm")),
    Internal("torch.nn.Module", "_buffers", lambda trainer: trainer.lightning_module),
    Internal("torch.Tensor", "_version", lambda _: Tensor),
    Internal("torch.optim.Optimizer", "profile_hook_step", lambda _: Optimizer),
)


def check(trainer: Any) -> None:
    """Looks for every one of them in what is installed.

    Raises:
        RuntimeError: when some are missing, with their names and the releases that have them.
    """
    missing = []
    for internal in INTERNALS:
        try:
            holder = internal.holder(trainer)
        except AttributeError:
            continue  # what it hangs on is missing itself, and is named
        if holder is not None and not hasattr(holder, internal.name):
            missing.append(f"{internal.owner}.{internal.name}")
    if missing:
        raise RuntimeError(
            f"lightning_lr needs {', '.join(missing)}, which is not in what is installed ({_installed()}): "
            f"it is known to work with {TESTED}"
        )


def _installed() -> str:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def is_kind(thing: Any, *kinds: str) -> bool:
    """Whether one of its classes is Lightning's of such a name, in either namespace."""
    return any(kind.__name__ in kinds and _lightnings(kind) for kind in type(thing).__mro__)


def _lightnings(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("lightning", "pytorch_lightning")


# Lightning ---------------------------------------------------------------------------------------------------------


def loggers_step(trainer: Any) -> int:
    """The present place on the axis that Lightning's own `self.log` writes to."""
    return _epoch_loop(trainer)._batches_that_stepped


def logs_now(trainer: Any) -> bool:
    """Whether this batch is one of those at which Lightning writes to its loggers."""
    return trainer._logger_connector.should_update_logs


def file_writer(logger: Any) -> Any:
    """What writes summaries of any kind into TensorBoard's event file for a logger; None for a logger of another kind,
    and for the one that stands for it on other ranks and in a `fast_dev_run`."""
    get: Any = getattr(getattr(logger, "experiment", None), "_get_file_writer", None)
    writer = get() if callable(get) else None
    # tensorboardX has the same names, and protobuf classes of its own
    known = type(getattr(writer, "event_writer", None)).__module__.startswith("tensorboard.")
    return writer if known else None


def show_metrics(trainer: Any, values: dict[str, Tensor]) -> None:
    """Puts values into `trainer.callback_metrics`, which would compute all metrics anew if it were asked for itself."""
    trainer._logger_connector._callback_metrics.update(values)


def callback_metrics(trainer: Any) -> dict[str, Any]:
    """`trainer.callback_metrics` as they were computed last."""
    return trainer._logger_connector._callback_metrics


def results(trainer: Any) -> dict[str, Any] | None:
    """What the running loop's `self.log` has gathered, by key; None between loops."""
    return trainer._results


def training_results(trainer: Any) -> dict[str, Any]:
    """What the training epoch's `self.log` has gathered, by key."""
    return _epoch_loop(trainer)._results


def logged_value(gathered: Any, result: Any, *, on_step: bool) -> Tensor | None:
    """One gathered value: of the latest batch, or of the epoch that is just over; None where there is none."""
    return result._forward_cache if on_step else gathered._get_cache(result, False)


def forget_step_value(result: Any) -> None:
    """Drops what a gathered value was in the latest batch; that of the epoch stays."""
    result._forward_cache = None


def restarted_before_validation(trainer: Any) -> bool:
    """Whether the run was resumed from a checkpoint of an epoch's last batch, saved before its validation."""
    loop = _epoch_loop(trainer)
    return loop.restarted_on_train_batch_end and loop.batch_progress.is_last_batch


def restarted_in_validation(trainer: Any) -> bool:
    """Whether the run was resumed from a checkpoint that was saved in the middle of a validation."""
    loop = _epoch_loop(trainer)
    progress = loop.val_loop.batch_progress
    whole = progress.current.ready if progress.is_last_batch else None
    return loop.restarting and progress.current.completed not in (0, whole)


def loop_wants_batch(trainer: Any) -> bool:
    """Whether the training loop is between two batches: it converts the next one before it says that one is ready."""
    progress = _epoch_loop(trainer).batch_progress.current
    return trainer.training and progress.ready == progress.completed


def step_fetches_itself(trainer: Any) -> bool:
    """Whether batches go to `training_step(self, dataloader_iter)`, and the loop never has one in its hands."""
    return is_kind(trainer.fit_loop._data_fetcher, "_DataLoaderIterDataFetcher")


def lightnings_log() -> Any:
    """The logger of Lightning's console messages."""
    return rank_zero.log


class Average:
    """An average of the weights that one of Lightning's callbacks keeps. Until it has some, it is of no use.

    Args:
        callback: whose.
    """

    def __init__(self, callback: Any) -> None:
        self._callback, self.model = callback, callback._average_model
        self._counted = self.model if is_kind(callback, "WeightAveraging") else callback

    @property
    def count(self) -> Tensor:
        """How many weights are in it; Tensor, shape ()."""
        count = self._counted.n_averaged
        # SWA has only a number before the first epoch that it averages in, in a resumed run too
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
    """The averages that callbacks keep beside the trained model."""
    kinds = ("StochasticWeightAveraging", "WeightAveraging")
    return [Average(one) for one in callbacks if is_kind(one, *kinds) and one._average_model is not None]


# torch -------------------------------------------------------------------------------------------------------------

foreach_copy: Any = getattr(torch, "_foreach_copy_", None)
foreach_norm: Any = getattr(torch, "_foreach_norm", None)


def scaler_in_use(trainer: Any) -> Any:
    """The gradient scaler in use, or None."""
    return getattr(trainer.precision_plugin, "scaler", None)


def scale_of(gradient_scaler: Any) -> Tensor | None:
    """What a scaler multiplies losses by; Tensor, shape (); None without a scaler, and before its first loss."""
    return None if gradient_scaler is None else gradient_scaler._scale


def scaler_tensors(gradient_scaler: Any) -> Iterator[tuple[str, Tensor]]:
    """A scaler's state on its device, by name."""
    for name in ("_scale", "_growth_tracker") if gradient_scaler is not None else ():
        value = getattr(gradient_scaler, name)
        if isinstance(value, Tensor):
            yield name, value


def unscales_itself(optimizer: Any) -> bool:
    """Whether a gradient scaler leaves the gradients scaled, for the optimizer's own kernel (a fused one)."""
    return getattr(optimizer, "_step_supports_amp_scaling", False)


def skipped_on_device(optimizer: Any) -> bool:
    """Whether a fused optimizer, under a gradient scaler, has just passed over the update on its device."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and float(found_inf) != 0.0


def writes(tensor: Tensor) -> int | None:
    """How often torch has seen the tensor written to; None where it doesn't count."""
    return None if tensor.is_inference() else tensor._version


HOOKED_STEP = Optimizer.profile_hook_step(lambda *_: None).__code__
"""The code that torch puts around every `step` in order to call its hooks."""


def is_compiled(function: Any) -> bool:
    """Whether a function was given to `torch.compile`."""
    return hasattr(function, "_torchdynamo_orig_callable") and not getattr(function, "_torchdynamo_disable", False)


def buffers_of(module: nn.Module) -> dict[str, Any]:
    """A module's own buffers by name, live: a module may put another tensor there."""
    return module._buffers


# torchmetrics ------------------------------------------------------------------------------------------------------


def metric_updates(metric: torchmetrics.Metric) -> int:
    """How often a metric was updated since its last reset."""
    return metric._update_count


def set_metric(metric: torchmetrics.Metric, updates: int, states: dict[str, Any]) -> None:
    """Gives a metric other states, after so many updates."""
    for name, value in states.items():
        setattr(metric, name, value)
    metric._update_count, metric._computed = updates, None


def metric_memory(metric: torchmetrics.Metric) -> dict[str, Any]:
    """All that an update of a metric changes, by attribute, live."""
    names = [*metric._defaults, "_update_count", "_computed", "_forward_cache"]
    return {name: getattr(metric, name) for name in names if hasattr(metric, name)}


def metric_states(metric: torchmetrics.Metric) -> dict[str, Any]:
    """A metric's states, by name, live."""
    return {name: getattr(metric, name) for name in metric._defaults}
