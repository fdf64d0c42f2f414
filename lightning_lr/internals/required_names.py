"""Required names: those that are not public, each looked for at the start of a run."""

from __future__ import annotations

import functools
import importlib.metadata
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torchmetrics
from lightning_utilities.core import rank_zero
from torch import Tensor
from torch.optim import Optimizer

from lightning_lr.internals.lightning_internals import SKIPS, epoch_loop, is_kind
from lightning_lr.internals.torch_internals import scaler_in_use

TESTED = "pytorch-lightning and lightning 2.5.0 and 2.6.6 with torch 2.13.0 and torchmetrics 1.9.0"
"""The releases that the tests run with."""

PACKAGES = ("pytorch-lightning", "lightning", "torch", "torchmetrics")


class Internal(NamedTuple):
    """One name that is not public.

    Args:
        owner: who has it, for the error.
        name: the attribute.
        holder: returns the object of a trainer that must have it; None where this run has no such object.
    """

    owner: str
    name: str
    holder: Callable[[Any], Any]


@functools.cache
def _metric(kind: type = torchmetrics.MeanMetric) -> Any:
    return kind()


def _result(trainer: Any) -> Any:
    """A metric as Lightning's `self.log` makes it."""
    module = importlib.import_module(type(epoch_loop(trainer)._results).__module__)
    return _logged(module._ResultMetric, module._Metadata)


@functools.cache
def _logged(result: Any, metadata: Any) -> Any:
    return result(metadata("training_step", "loss"), is_tensor=True)


@functools.cache
def _scaler_step(_: Any) -> Any:
    """The names by which a gradient scaler and an optimizer that unscales its gradients itself know each other."""
    code = torch.amp.GradScaler.step.__code__
    return SimpleNamespace(**{name: True for name in (*code.co_names, *code.co_consts) if isinstance(name, str)})


def _of_kind(*kinds: str) -> Callable[[Any], Any]:
    def first(trainer: Any) -> Any:
        return next((c for c in trainer.callbacks if is_kind(c, *kinds)), None)

    return first


def _summary_writer(_: Any) -> Any:
    # while nobody has imported it, nothing is written with it
    return getattr(sys.modules.get("torch.utils.tensorboard"), "SummaryWriter", None)


INTERNALS = (
    Internal("Trainer", "_results", lambda trainer: trainer),
    Internal("Trainer", "_logger_connector", lambda trainer: trainer),
    Internal("Trainer._logger_connector", "should_update_logs", lambda trainer: trainer._logger_connector),
    Internal("Trainer._logger_connector", "_callback_metrics", lambda trainer: trainer._logger_connector),
    Internal("Trainer.fit_loop", "_data_fetcher", lambda trainer: trainer.fit_loop),
    Internal("Trainer.precision_plugin", "convert_input", lambda trainer: trainer.precision_plugin),
    Internal("Trainer.fit_loop.epoch_loop", "_batches_that_stepped", epoch_loop),
    Internal("Trainer.fit_loop.epoch_loop", "_results", epoch_loop),
    Internal("Trainer.fit_loop.epoch_loop", "min_steps", epoch_loop),
    Internal("Trainer.fit_loop.epoch_loop", "val_loop", epoch_loop),
    Internal("Trainer.fit_loop.epoch_loop", "restarting", epoch_loop),
    Internal("Trainer.fit_loop.epoch_loop", "restarted_on_train_batch_end", epoch_loop),
    Internal("Trainer.fit_loop.epoch_loop", "batch_progress", epoch_loop),
    Internal("Trainer.fit_loop.epoch_loop.val_loop", "batch_progress", lambda trainer: epoch_loop(trainer).val_loop),
    Internal("_ResultCollection", "_get_cache", lambda trainer: epoch_loop(trainer)._results),
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
    """Looks for every required name in the installed packages.

    Raises:
        RuntimeError: when some are missing; it lists them, and the releases that have them.
    """
    missing = []
    for internal in INTERNALS:
        try:
            holder = internal.holder(trainer)
        except AttributeError:
            continue  # the object that should hold it is missing itself, and is listed
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
