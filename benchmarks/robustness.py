"""How much of the initial rate is left to matter with `autopilot`: seven decades of it, beside the stock run.

Two tasks of `finder_tasks`, each with SGD (1e-4 to 1e2) and AdamW (1e-6 to 1). The best of the stock runs over the same
decades, two rates a decade, at the same number of updates (the sweep included) is the measure: a loss within 5% of it,
and the normalised regret, (loss - best) / (loss at the start - best), at most 1.

    python benchmarks/robustness.py            # about half an hour on one core
    python benchmarks/robustness.py --quick    # one seed of one task: about two
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import tempfile
import warnings
from typing import Any

import printed
import pytorch_lightning as pl
import torch
from finder_tasks import PlainRun
from printed import head, row
from torch.utils.data import DataLoader, IterableDataset

import lightning_lr as llr

UPDATES = {"digits_cnn": 1200, "transformer": 300}
DECADES = {"sgd": (-4, 3), "adamw": (-6, 1)}
EPOCH = 30


def final_loss(task: str, optimizer: str, seed: int, rate: float, *, autopilot: bool) -> tuple[float, float]:
    """The held-out loss at the end, and the one at the start."""
    run = PlainRun(task, optimizer, seed)
    at_start, updates = run.held_out_loss(), UPDATES[task]

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            for _ in range(EPOCH):
                yield run.batch()

    class Once(IterableDataset[Any]):
        def __iter__(self) -> Any:
            yield torch.zeros(1)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = run.net

        def training_step(self, batch: Any) -> Any:
            return run.task.loss(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any) -> None:
            self.log("val_loss", run.held_out_loss(), batch_size=1)

        def configure_optimizers(self) -> Any:
            for group in run.optimizer.param_groups:
                group["lr"] = rate
            return run.optimizer

    callbacks = llr.autopilot("val_loss", lr_monitor=None, finder={"progress_bar": False}) if autopilot else []
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_steps=updates,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
            callbacks=callbacks,
        )
        trainer.fit(Module(), DataLoader(Stream(), batch_size=None), DataLoader(Once(), batch_size=None))
    loss = run.held_out_loss()
    return loss if math.isfinite(loss) else math.inf, at_start


def span(numbers: list[float], form: str) -> str:
    """From the least to the largest, or the only one."""
    ends = [f"{number:{form}}" for number in (min(numbers), max(numbers))]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed of the transformer")
    printed.add_argument(parser)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning_utilities"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    head(
        "robustness", "Losses with `autopilot` beside the best of the stock runs", "task", "optimizer", "seed",
        "best of the grid", "autopilot, 7 decades", "within 5%: stock", "autopilot", "regret: stock", "autopilot's",
        "autopilot / best",
    )  # fmt: skip
    regrets: list[float] = []
    stock_regrets: list[float] = []
    for task in ["transformer"] if args.quick else UPDATES:
        for optimizer, (low, high) in DECADES.items():
            for seed in (0,) if args.quick else (0, 1, 2):
                halves = {10 ** (e / 2) for e in range(2 * low, 2 * high - 1)} | {10.0**e for e in range(low, high)}
                stock = {rate: final_loss(task, optimizer, seed, rate, autopilot=False) for rate in sorted(halves)}
                best = min(loss for loss, _ in stock.values())
                ends = [final_loss(task, optimizer, seed, 10.0**e, autopilot=True) for e in range(low, high)]

                def regret(loss: float, start: float, best: float = best) -> float:
                    return min(1.0, (loss - best) / (start - best))

                mine = [regret(*end) for end in ends]
                theirs = [regret(*stock[10.0**e]) for e in range(low, high)]
                near = sum(loss <= 1.05 * best for loss, _ in ends)
                near_stock = sum(stock[10.0**e][0] <= 1.05 * best for e in range(low, high))
                losses, ratios = ([loss / by for loss, _ in ends] for by in (1.0, best))
                regrets += mine
                stock_regrets += theirs
                row(
                    task, optimizer, seed, f"{best:.4g}", span(losses, ".4g"), f"{near_stock} of 7", f"{near} of 7",
                    f"{statistics.mean(theirs):.3f}", f"{statistics.mean(mine):.3f}", span(ratios, ".2f"),
                )  # fmt: skip
    print(f"\nmean regret: stock {statistics.mean(stock_regrets):.3f}, autopilot {statistics.mean(regrets):.3f}")
    printed.write(parser, args)


if __name__ == "__main__":
    main()
