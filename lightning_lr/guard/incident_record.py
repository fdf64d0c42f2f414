"""Incident record: what the journal keeps of an update that was not simply accepted."""

from __future__ import annotations

import math
from typing import Any

import torch

from lightning_lr.policies.verdict import Signals, Verdict
from lightning_lr.run.run import Run
from lightning_lr.signals.measure import Measured

KNOWN = (
    *("what", "update", "epoch", "batch", "rank", "side", "loss", "grad_norm", "threshold", "update_ratio"),
    *("factor", "back", "cause", "evidence"),
)
"""What every incident's record has, if only to say that it isn't known."""

SIDES = {"present": "the run's own weights", "newest": "the newest copy's weights", "best": "the best copy's weights"}


def unfilled(run: Run, guard: str, index: int) -> dict[str, Any]:
    """A record in which only the guard and the optimizer are filled in."""
    names = run.names_at((index, 0))
    whose = {"kind": "incident", "callback": guard, "optimizer": names.optimizer, "tag": names.tag, "told": False}
    return {**whose, **dict.fromkeys(KNOWN), "parameters": []}


def incident_record(
    run: Run, guard: str, index: int, update: int, measured: Measured, signals: Signals, verdict: Verdict
) -> dict[str, Any]:
    """A record of an update that was not simply accepted; what became of it is not in it.

    Args:
        run: the run.
        guard: the name of the guard.
        index: of the optimizer.
        update: the number of the update, among those that the guard has judged.
        measured, signals, verdict: of the update.
    """
    trainer, tried = run.trainer, {"here": verdict.here, "there": verdict.there, "batches": verdict.batches}
    return {
        **unfilled(run, guard, index),
        "update": update,
        "epoch": trainer.current_epoch,
        "batch": trainer.fit_loop.epoch_loop.batch_idx,
        "rank": None if math.isfinite(signals.loss) else only_rank(trainer, measured.own_loss),
        "side": signals.side,
        "loss": signals.loss,
        "grad_norm": signals.grad_norm,
        "factor": verdict.factor,
        "cause": verdict.cause,
        "evidence": tried if verdict.outcome else None,
    }


def only_rank(trainer: Any, own_loss: float | None) -> int | None:
    """The one rank whose own loss is not finite; None where that holds for several, or can't be told.

    A small collective, where there are several ranks: all of them ask, or none.
    """
    bad, rank, ranks = own_loss is not None and not math.isfinite(own_loss), trainer.global_rank, trainer.world_size
    if ranks == 1 or not torch.distributed.is_initialized():
        return None
    mine = [rank, -rank] if bad else [-1, -ranks]
    found = torch.tensor(mine, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    last, first = found.tolist()
    return last if last == -first else None
