"""A run that dies of its rate and of broken weights, and the same run with one line more.

Three trainings of a small CNN on scikit-learn's digits: with a well-tuned rate; with one that is thirty times too
high, a batch of NaN and, later, weights that break; and with all that and `DivergenceGuard`. It tries out what is to
blame, and says what it saw. Run `python examples/rescue.py`, then open TensorBoard as its last line says.
"""

from __future__ import annotations

import argparse
import logging
from typing import Any

import pytorch_lightning as pl
import torch
from digits import Classifier, calm, digits
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.loggers import TensorBoardLogger

import lightning_lr as llr

NAN_AT, BROKEN_AT = 300, 400
"""The updates at which the data brings a batch of NaN, and at which weights break."""


class Faults(pl.Callback):
    """Makes one batch NaN, as a broken file would, and later one layer's weights 30 times as large."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.total_batch_idx == NAN_AT:
            batch[0].fill_(float("nan"))
        if trainer.fit_loop.total_batch_idx == BROKEN_AT:
            pl_module.net[3].weight.data.mul_(30.0)


class Rescued(Classifier):
    """The classifier of `examples/digits.py`, with SGD instead of AdamW."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams["rate"], momentum=0.9)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.hparams["updates"])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


def train(name: str, rate: float, callbacks: list[Any], args: argparse.Namespace) -> tuple[float, str]:
    """Trains once; returns the held-out accuracy and the folder of its logs."""
    print(f"\n{name}", flush=True)
    pl.seed_everything(0, verbose=False)
    data, held_out = digits()
    logger = TensorBoardLogger(args.logs, name="rescue", default_hp_metric=False)
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        logger=logger,
        enable_checkpointing=False,
        enable_model_summary=False,
        log_every_n_steps=10,
        callbacks=[*callbacks, TQDMProgressBar(refresh_rate=20)],
    )
    trainer.fit(Rescued(rate, updates=args.epochs * len(data)), data, held_out)
    metrics = trainer.callback_metrics
    print(f"held-out loss {metrics['val_loss']:.3f}, accuracy {metrics['val_acc']:.3f}")
    return float(metrics["val_acc"]), logger.log_dir


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=0.03, help="a well-tuned rate (default: %(default)s)")
    parser.add_argument("--times", type=float, default=30.0, help="how many times too high (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=15, help="epochs of 40 updates (default: %(default)s)")
    parser.add_argument("--logs", default="logs", help="folder for TensorBoard (default: %(default)s)")
    args = parser.parse_args()
    calm()
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.ERROR)
    torch.set_num_threads(1)

    high = args.rate * args.times
    tuned, _ = train(f"1. A well-tuned rate, {args.rate:g}:", args.rate, [], args)
    faults = f"a batch of NaN at update {NAN_AT}, broken weights at {BROKEN_AT}"
    dead, _ = train(f"2. {args.times:g} times that, {high:g}; {faults}; without the guard:", high, [Faults()], args)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.INFO)
    guard, monitor = llr.DivergenceGuard(), llr.LRMonitor()
    name = "3. The same, with DivergenceGuard():"
    saved, logs = train(name, high, [guard, monitor, Faults()], args)

    print("\nWhat happened, and why:")
    for line in monitor.story:
        print(f"  {line}")
    print("\nguard.summary():", ", ".join(f"{name} {number:g}" for name, number in guard.summary().items()))
    print(f"held-out accuracy: well-tuned {tuned:.3f}, too high {dead:.3f}, too high with the guard {saved:.3f}")
    print(f"See it: tensorboard --logdir {logs}, then http://localhost:6006/#lightning_lr")


if __name__ == "__main__":
    main()
