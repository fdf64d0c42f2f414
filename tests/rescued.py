"""A short real run in which everything happens, and a healthy one, for those who look at what is written.

Warm-up, a sweep, batches that are not finite on one rank, broken weights, a trial, a rewind, growth, a plateau and a
cool-down, with two param groups, on one or two processes.
"""

from __future__ import annotations

from typing import Any

import torch

import lightning_lr as llr
from tests.small import Loader, Model, held_out, pl, trainer

EPOCHS, BATCHES = 20, 24
HEALTHY_EPOCHS = 8
NAN_AT = (150, 151, 152, 190)
BROKEN_AT = 240
GROUP = "head <b onclick=alert(1)>&amp;"
"""A group's name that would be markup, if a page took it for that."""


class Spoils(pl.Callback):
    """Fills a batch with NaN on the last rank, and later makes the weights thirty times as large on all."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        number = trainer.fit_loop.epoch_loop.total_batch_idx
        if number in NAN_AT and trainer.global_rank == trainer.world_size - 1:
            batch[0].fill_(float("nan"))
        if number == BROKEN_AT:
            with torch.no_grad():
                pl_module.backbone.weight.mul_(-30.0)


def groups(module: Any) -> torch.optim.Optimizer:
    head = {"params": module.head.parameters(), "lr": 0.02, "name": GROUP}
    return torch.optim.SGD([{"params": module.backbone.parameters(), "name": "backbone"}, head], lr=0.1, momentum=0.9)


def train(root: str, name: str, devices: int = 1) -> dict[str, Any]:
    """Trains once into `root / name`; with the name `healthy` without any fault.

    Returns:
        `changes`: of the monitor, as dicts; `story`; `counts`: the guard's.
    """
    healthy = name == "healthy"
    monitor, guard = llr.LRMonitor(update_ratio=True), llr.DivergenceGuard(snapshot_every=10)
    ours: list[Any] = [llr.Warmup(20), llr.Cooldown(80), guard, monitor]
    if not healthy:
        plateau = llr.PlateauDecay("val_loss", factor=0.5, patience=1, threshold=0.3, cooldown=9)
        ours += [llr.LRFinder(at=30, steps=40, min_lr=1e-4), plateau, Spoils()]
    more = {"devices": 2, "strategy": "ddp"} if devices == 2 else {}
    fit = trainer(
        root,
        callbacks=ours,
        logger=pl.loggers.TensorBoardLogger(root, name="", version=name),
        max_epochs=HEALTHY_EPOCHS if healthy else EPOCHS,
        log_every_n_steps=4,
        **more,
    )
    fit.fit(Model(groups, hidden=16), Loader(BATCHES, 8), held_out())
    return {
        "changes": [vars(change) for change in monitor.changes],
        "story": list(monitor.story),
        "counts": guard.summary(),
    }
