"""The figures of the pages on `DivergenceGuard` and `LRFinder`: python docs/figures_guard.py [FOLDER]."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_lr as llr

RATE, TIMES = 0.03, 30.0
"""A rate that suits this net, and by how much the figure's is too high."""

NAN_AT, BROKEN_AT = 300, 400
"""The updates at which a batch is NaN, and at which one layer's weights become 30 times as large."""


class Digits(pl.LightningModule):
    """A small CNN on scikit-learn's digits that keeps its losses."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate, self.losses = rate, list[float]()
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)),
        )

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.9)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


class Faults(pl.Callback):
    """A batch of NaN, and weights that break."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.total_batch_idx == NAN_AT:
            batch[0].fill_(float("nan"))
        if trainer.fit_loop.total_batch_idx == BROKEN_AT:
            pl_module.net[3].weight.data.mul_(30.0)


def train(rate: float, *callbacks: Any) -> Digits:
    pl.seed_everything(0, verbose=False)
    bunch: Any = load_digits()
    images, labels = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16.0, torch.tensor(bunch.target)
    model = Digits(rate)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(
        max_steps=600, accelerator="cpu", callbacks=list(callbacks), enable_checkpointing=False, **quiet
    )
    trainer.fit(model, DataLoader(TensorDataset(images[:1280], labels[:1280]), 32, shuffle=True))
    return model


def rescue() -> Figure:
    """The losses of one run without and with the guard, and what the guard multiplies the rate by."""
    guard, monitor = llr.DivergenceGuard(), llr.LRMonitor()
    bare, guarded = train(RATE * TIMES, Faults()), train(RATE * TIMES, guard, monitor, Faults())
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    above.plot(bare.losses, color="C3", linewidth=0.8, label="without the guard")
    above.plot(guarded.losses, color="C0", linewidth=0.8, label="with DivergenceGuard()")
    above.set(yscale="log", ylabel="training loss", ylim=(1e-2, 30.0))
    above.axvline(NAN_AT, color="0.6", linestyle=":", label="a batch of NaN")
    above.axvline(BROKEN_AT, color="0.6", linestyle="--", label="weights break")
    above.legend(fontsize=8, loc="lower left")
    rates = [(change.step, change.new) for change in monitor.changes]
    below.step(*zip(*rates, strict=True), where="post", color="C0", linewidth=1.2)
    below.set(yscale="log", xlabel="update", ylabel="effective rate")
    return figure


def sweep() -> Figure:
    """What a sweep has found on the same net."""
    finder = llr.LRFinder(progress_bar=False)
    train(RATE, finder)
    return finder.plot()


def main() -> None:
    for name in ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in {"guard-rescue": rescue, "finder-sweep": sweep}.items():
        draw().savefig(folder / f"{name}.png", dpi=110)


if __name__ == "__main__":
    main()
