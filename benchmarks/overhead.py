"""What the callbacks cost per update, over a bare `Trainer`, beside Lightning's own `LearningRateMonitor`.

Every repetition runs all arms, in a rotated order; what is printed is the median over repetitions of the difference to
the bare arm of the same repetition, in microseconds per update, and of the ratio. CPU time (`process_time`) is the less
disturbed clock on a shared machine; wall time stands beside it.

    python benchmarks/overhead.py            # about ten minutes on one core
    python benchmarks/overhead.py --quick    # about one
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_lr as llr

Schedule = Callable[[torch.optim.Optimizer, int], Any]

SCHEDULES: dict[str, Schedule] = {
    "constant": lambda optimizer, updates: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
    "cosine": lambda optimizer, updates: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates),
}

ARMS: dict[str, Callable[[], list[Any]]] = {
    "bare": list,
    "LearningRateMonitor(step)": lambda: [LearningRateMonitor("step")],
    "LRMonitor": lambda: [llr.LRMonitor()],
    "Warmup + PlateauDecay + LRMonitor": lambda: [
        llr.Warmup(50),
        llr.PlateauDecay("train_loss", test="trend", patience=200, max_decays=None, factor=0.99),
        llr.LRMonitor(),
    ],
}


class Net(pl.LightningModule):
    """An MLP of `width` units and `depth` hidden layers."""

    def __init__(self, width: int, depth: int, schedule: Schedule, updates: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Linear(64, width), nn.ReLU()]
        for _ in range(depth):
            layers += [nn.Linear(width, width), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Linear(width, 10))
        self.schedule, self.updates = schedule, updates

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1e-3)
        scheduler = {"scheduler": self.schedule(optimizer, self.updates), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


class Clock(pl.Callback):
    """Time from the start of training to its end: (wall, CPU) in seconds."""

    def on_train_start(self, *_: Any) -> None:
        self.start = time.perf_counter(), time.process_time()

    def on_train_end(self, *_: Any) -> None:
        self.spent = time.perf_counter() - self.start[0], time.process_time() - self.start[1]


def spend(arm: str, size: dict[str, int], schedule: str, log_every: int, root: str) -> tuple[float, float]:
    """Microseconds per update, (wall, CPU)."""
    updates, batch = size["updates"], size["batch"]
    data = TensorDataset(torch.randn(batch, 64), torch.randint(10, (batch,)))
    loader = DataLoader(torch.utils.data.ConcatDataset([data] * updates), batch_size=batch)
    clock = Clock()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=TensorBoardLogger(root, name=""),
        log_every_n_steps=log_every,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*ARMS[arm](), clock],
    )
    trainer.fit(Net(size["width"], size["depth"], SCHEDULES[schedule], updates), loader)
    return clock.spent[0] / updates * 1e6, clock.spent[1] / updates * 1e6


SIZES = {
    "tiny (MLP, 5k parameters)": {"width": 32, "depth": 1, "batch": 8, "updates": 600, "reps": 11},
    "60 ms (MLP, 4M parameters)": {"width": 1024, "depth": 4, "batch": 192, "updates": 40, "reps": 5},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny model and three repetitions only")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    names = list(ARMS)
    for size_name, size in SIZES.items():
        if args.quick and not size_name.startswith("tiny"):
            continue
        reps = 3 if args.quick else size["reps"]
        for schedule in SCHEDULES:
            for log_every in (1, 50):
                times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
                with tempfile.TemporaryDirectory() as root:
                    for rep in range(reps + 1):
                        for name in names[rep % len(names) :] + names[: rep % len(names)]:
                            spent = spend(name, size, schedule, log_every, root)
                            if rep > 0:  # the first repetition warms up
                                times[name].append(spent)
                bare = times["bare"]
                print(f"\n{size_name}, {schedule} schedule, log_every_n_steps={log_every}, {reps} repetitions")
                print(f"  bare: {statistics.median(w for w, _ in bare):.0f} us wall per update")
                for name in names[1:]:
                    row = []
                    for clock in (0, 1):
                        more = [a[clock] - b[clock] for a, b in zip(times[name], bare, strict=True)]
                        ratio = [a[clock] / b[clock] for a, b in zip(times[name], bare, strict=True)]
                        row.append(f"{statistics.median(more):+7.0f} us ({statistics.median(ratio):.3f})")
                    print(f"  {name:36s} wall {row[0]}   CPU {row[1]}")


if __name__ == "__main__":
    main()
