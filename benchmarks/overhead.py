"""What the callbacks cost per update, over a bare `Trainer`, beside Lightning's own `LearningRateMonitor`.

The arms run side by side, a block of updates each in turn; printed are differences of medians to the bare arm, in
microseconds per update, and their ratios. CPU time (`process_time`) is the less disturbed clock on a shared machine;
wall time stands beside it.

    python benchmarks/overhead.py            # about ten minutes on one core
    python benchmarks/overhead.py --quick    # about two
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Callable
from typing import Any

import printed
import torch
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import TensorBoardLogger
from timing import Clock, Net, fit, in_turn, quiet, table

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


SIZES = {
    "tiny (MLP, 4k parameters)": {"width": 32, "depth": 1, "batch": 8, "updates": 840, "block": 20},
    "60 ms (MLP, 4M parameters)": {"width": 1024, "depth": 4, "batch": 192, "updates": 60, "block": 4},
}


def optimize(schedule: str, updates: int, parameters: Any) -> Any:
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    scheduler = {"scheduler": SCHEDULES[schedule](optimizer, updates), "interval": "step"}
    return {"optimizer": optimizer, "lr_scheduler": scheduler}


def run(size: dict[str, int], schedule: str, log_every: int, callbacks: list[Any], clock: Clock) -> Any:
    updates = size["updates"]
    net = Net(size["width"], size["depth"], functools.partial(optimize, schedule, updates))
    with tempfile.TemporaryDirectory() as root:
        logger = TensorBoardLogger(root, name="")
        return fit(callbacks, clock, net, size["batch"], updates, logger=logger, log_every_n_steps=log_every)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny model only")
    printed.add_argument(parser)
    args = parser.parse_args()
    quiet()
    for name, size in SIZES.items():
        if args.quick and not name.startswith("tiny"):
            continue
        for schedule in SCHEDULES:
            for log_every in (1, 50):
                times = in_turn(ARMS, functools.partial(run, size, schedule, log_every), size["block"], 1)
                part = f"{name}, {schedule} schedule, log_every_n_steps={log_every}"
                print(f"\n{part}\n{table(part, times)}", flush=True)
    printed.write(parser, args)


if __name__ == "__main__":
    main()
