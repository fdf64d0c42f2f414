"""What a sweep costs: its wall time over that of the same number of plain updates, beside Lightning's finder.

Repetitions run all arms one after the other; printed is the median over repetitions of each one's ratio to the plain
updates of the same repetition. Lightning's finder includes the checkpoint that it writes and loads.

    python benchmarks/finder_cost.py
    python benchmarks/finder_cost.py --quick
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from typing import Any

import printed
import pytorch_lightning as pl
import timing
import torch
from pytorch_lightning.tuner import Tuner
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_lr as llr

UPDATES, ROOM = 60, 10
"""A sweep's most updates, and how many more the run has."""


class Net(timing.Net):
    """Without logging, so that plain updates are plain; it notes when each batch begins."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__(width, depth, lambda parameters: torch.optim.AdamW(parameters, lr=self.lr))
        self.lr = 1e-3
        self.times: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.times.append(time.perf_counter())


def seconds(arm: str, width: int, depth: int, batch_size: int) -> tuple[float, int]:
    """Wall time of the arm's updates and their number."""
    size = (UPDATES + ROOM) * batch_size
    data = TensorDataset(torch.randn(size, 64), torch.randint(10, (size,)))
    loader, net = DataLoader(data, batch_size=batch_size), Net(width, depth)
    with tempfile.TemporaryDirectory() as folder:
        finder = llr.LRFinder(steps=UPDATES, suggest="valley" if arm == "LRFinder, ramp" else "bracket")
        trainer = pl.Trainer(
            max_steps=UPDATES + ROOM,
            accelerator="cpu",
            logger=False,
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            callbacks=[finder] if arm.startswith("LRFinder") else [],
        )
        if arm == "LearningRateFinder":
            began = time.perf_counter()
            Tuner(trainer).lr_find(net, loader, num_training=UPDATES, early_stop_threshold=None)
            return time.perf_counter() - began, UPDATES
        trainer.fit(net, loader)
        made = UPDATES
        if arm.startswith("LRFinder"):
            assert finder.result is not None, "no sweep was made"
            # its pauses are among them
            made = trainer.global_step - finder.ledger.updates(0)
        return net.times[made] - net.times[0], made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    printed.add_argument(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    arms = ("plain", "LRFinder", "LRFinder, ramp", "LearningRateFinder")
    columns = ["model", "plain update, ms", *(f"{arm}: ratio [least, most]" for arm in arms[1:])]
    printed.head("sweep", "Wall time of an update in a sweep over that of a plain one", *columns)
    for name, size in {"MLP 9k, batch 32": (64, 1, 32), "MLP 3.2M, batch 64": (1024, 3, 64)}.items():
        ratios: dict[str, list[float]] = {arm: [] for arm in arms}
        plain = []
        for turn in range(2 if options.quick else 7):
            times = {}
            for arm in arms[turn % len(arms) :] + arms[: turn % len(arms)]:
                spent, made = seconds(arm, *size)
                times[arm] = spent / made
            plain.append(times["plain"])
            for arm in arms:
                ratios[arm].append(times[arm] / times["plain"])
        cells = [f"{statistics.median(r):.2f} [{min(r):.2f}, {max(r):.2f}]" for a, r in ratios.items() if a != "plain"]
        printed.row(name, f"{1e3 * statistics.median(plain):.2f}", *cells)
    printed.write(parser, options)


if __name__ == "__main__":
    main()
