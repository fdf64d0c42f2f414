"""Lengths: how many updates an optimizer makes in some epochs, or in a run."""

from __future__ import annotations

import math
from typing import Any, overload


def updates_in_epochs(
    trainer: Any, epochs: float, asking: str, instead: str = "give steps= instead", first: int | None = None
) -> float:
    """The updates that each optimizer makes in this many epochs, counted from the current one.

    Manual optimization is taken to make one update per batch and optimizer.

    Args:
        trainer: within `fit`, its dataloaders set up.
        epochs: >= 0, may be fractional.
        asking: the argument that needs to know, for the error.
        instead: what to write instead, for the error.
        first: the first of these epochs; None for the current one.

    Raises:
        ValueError: when the training dataloader has no length.
    """
    batches = trainer.num_training_batches
    if not math.isfinite(batches):
        raise ValueError(
            f"{asking} needs to know how many batches an epoch has, but the training dataloader has no length: "
            f"{instead}, or Trainer(limit_train_batches=<a whole number>)"
        )
    whole, rest = divmod(epochs, 1.0)
    start = trainer.current_epoch if first is None else first
    if _schedule(trainer) is None:
        updates = whole * math.ceil(batches / accumulation(trainer, start))
    else:
        updates = sum(math.ceil(batches / accumulation(trainer, start + i)) for i in range(int(whole)))
    return updates + rest * math.ceil(batches / accumulation(trainer, start + int(whole)))


def updates_in_last_epochs(trainer: Any, epochs: float, asking: str, instead: str, end: int) -> float:
    """The updates that each optimizer makes in this many epochs before epoch `end`; see `updates_in_epochs`."""
    whole = math.floor(epochs)
    first = max(0, end - whole)
    before = updates_in_epochs(trainer, epochs - whole, asking, instead, first=max(0, first - 1))
    return before + updates_in_epochs(trainer, whole, asking, instead, first=first)


@overload
def updates_in_run(trainer: Any, asking: str, instead: str = ...) -> float: ...
@overload
def updates_in_run(trainer: Any, asking: None) -> float | None: ...
def updates_in_run(trainer: Any, asking: str | None, instead: str = "give steps= instead") -> float | None:
    """The updates that each optimizer still makes in this run, until `max_steps` or `max_epochs` ends it.

    Args:
        trainer: within `fit`, its dataloaders set up.
        asking: the argument that needs to know, for the error; None to return None when that is not known.
        instead: what to write instead, for the error.

    Raises:
        ValueError: when the run has no known end.
    """
    limits = []
    if trainer.max_steps != -1:
        # Lightning counts the steps of all optimizers together (PL#17958)
        limits.append((trainer.max_steps - trainer.global_step) / max(1, len(trainer.optimizers)))
    epochs = trainer.fit_loop.max_epochs
    if epochs is not None and epochs != -1 and math.isfinite(trainer.num_training_batches):
        limits.append(updates_in_epochs(trainer, max(0, epochs - trainer.current_epoch), ""))
    if limits:
        return min(limits)
    if asking is None:
        return None
    raise ValueError(
        f"{asking} needs to know the length of the run, but max_steps is -1 and "
        f"{'max_epochs is -1' if epochs in (None, -1) else 'the training dataloader has no length'}: "
        f"{instead}, or Trainer(max_steps=...)"
    )


def updates_per_epoch(trainer: Any) -> float:
    """The updates that each optimizer makes in the current epoch; inf if the training dataloader has no length."""
    return (
        math.ceil(trainer.num_training_batches / accumulation(trainer, trainer.current_epoch))
        if math.isfinite(trainer.num_training_batches)
        else math.inf
    )


def accumulation(trainer: Any, epoch: int) -> int:
    """The batches of one update in an epoch."""
    if not trainer.lightning_module.automatic_optimization:
        return 1
    schedule = _schedule(trainer)
    return trainer.accumulate_grad_batches if schedule is None else schedule.get_accumulate_grad_batches(epoch)


def _schedule(trainer: Any) -> Any:
    """The callback that changes accumulation by epoch, or None."""
    return next((c for c in trainer.callbacks if hasattr(c, "get_accumulate_grad_batches")), None)
