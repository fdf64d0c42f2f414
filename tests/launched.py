"""A script as a user launches it: all callbacks on several ranks, each of which writes down what it did.

python -m tests.launched <strategy> <devices> <nodes> <fault on the last rank> <folder>
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

import lightning_lr as llr
from tests.small import Loader, held_out, trainer
from tests.ways import Net
from tests.witness import Faults, Witness, digest, pl

EPOCHS, BATCHES, FAULT_AT = 4, 18, 60


class Breaks(pl.Callback):
    """Fails on the last rank, and there only."""

    def __init__(self, how: str) -> None:
        self.how = how

    def now(self, trainer: Any) -> bool:
        last = trainer.global_rank == trainer.world_size - 1
        return last and trainer.fit_loop.epoch_loop.total_batch_idx == FAULT_AT

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if self.now(trainer) and self.how == "raise":
            raise RuntimeError(f"the user's own error on rank {trainer.global_rank}")
        if self.now(trainer) and self.how == "die":
            os._exit(7)

    def on_before_optimizer_step(self, trainer: Any, *_: Any) -> None:
        if self.now(trainer) and self.how == "raise in the step":
            raise RuntimeError(f"the user's own error on rank {trainer.global_rank}")


class Forgets(Net):
    """Logs its metric on every rank but the last."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self.global_rank < self.trainer.world_size - 1:
            self.log("val_loss", self(batch[0]).square().mean(), sync_dist=False)


class Writes(pl.Callback):
    """In the rank's own process, at the end: launchers that start processes keep nothing of a callback."""

    def __init__(self, root: Path, witness: Witness, guard: Any, finder: Any, monitor: Any) -> None:
        self.root, self.witness, self.guard, self.finder, self.monitor = root, witness, guard, finder, monitor

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        record = {
            "rates": self.witness.steps,
            "weights": digest(list(pl_module.parameters())),
            "skips": self.guard.skips,
            "rewinds": self.guard.rewinds,
            "findings": [finding.to_dict() for finding in self.finder.findings],
            "changes": [vars(change) for change in self.monitor.changes],
            "batches": len(self.witness.rests) + 1,
            "updates": self.finder.ledger.updates(0),
        }
        (self.root / f"rank-{trainer.global_rank}.json").write_text(json.dumps(record))


def updates(record: dict[str, Any]) -> int:
    """The real updates that a run with this record made: no trial's, no pause's, and none that was skipped."""
    swept = sum(len(finding["losses"]) for finding in record["findings"])
    pauses = EPOCHS * BATCHES - swept - record["skips"] - record["rewinds"] - record["updates"]
    assert 0 <= pauses <= EPOCHS
    return record["updates"]


def main(strategy: str, devices: str, nodes: str, fault: str, root: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    finder, guard = llr.LRFinder(at=10, steps=30, min_lr=1e-4), llr.DivergenceGuard(snapshot_every=5)
    monitor = llr.LRMonitor()
    ours = [finder, llr.Warmup(6), llr.PlateauDecay("val_loss", factor=0.5, patience=0), guard, monitor]
    witness = Witness(finder, ours)
    faults = Faults({FAULT_AT: fault}, rank=int(devices) * int(nodes) - 1)
    others = [witness, faults, Breaks(fault), Writes(Path(root), witness, guard, finder, monitor)]
    fit = trainer(
        root,
        callbacks=[*ours, *others],
        logger=pl.loggers.CSVLogger(root),
        max_epochs=EPOCHS,
        devices=int(devices),
        num_nodes=int(nodes),
        strategy=strategy,
    )
    model = Forgets() if fault == "no metric" else Net()
    fit.fit(model, Loader(BATCHES, 8), held_out())
    if torch.distributed.is_initialized():
        # a process that ends with one is aborted by torch now and then ("terminate called without an active exception")
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
