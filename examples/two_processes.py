"""Two DDP processes on this machine's CPU: every rank makes the same updates at the same rates.

Run `python examples/two_processes.py`. Each rank prints a fingerprint of its rates at the end; they are equal.
"""

from __future__ import annotations

import argparse
import hashlib

import pytorch_lightning as pl
import torch
from digits import Classifier, calm, digits
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.loggers import TensorBoardLogger

import lightning_lr as llr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6, help="epochs of 20 updates (default: %(default)s)")
    parser.add_argument("--logs", default="logs", help="folder for TensorBoard (default: %(default)s)")
    args = parser.parse_args()
    calm()
    torch.set_num_threads(1)

    pl.seed_everything(0, verbose=False)
    train, held_out = digits()
    monitor = llr.LRMonitor()
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        logger=TensorBoardLogger(args.logs, name="two_processes", default_hp_metric=False),
        enable_checkpointing=False,
        log_every_n_steps=10,
        callbacks=[
            llr.Warmup(epochs=1),
            # the loss of each rank's own batches: the ranks decide from its mean
            llr.PlateauDecay("train_loss", test="trend", patience=40, factor=0.5),
            monitor,
            TQDMProgressBar(),
        ],
    )
    trainer.fit(Classifier(3e-3, updates=args.epochs * len(train) // 2), train, held_out)

    fingerprint = hashlib.sha256(repr(monitor.changes).encode()).hexdigest()[:16]
    print(f"\nrank {trainer.global_rank}: {fingerprint} {trainer.global_step} updates", flush=True)
    if trainer.is_global_zero:
        print("\nWhat happened to the rate, told once:")
        for line in monitor.story:
            print(f"  {line}")


if __name__ == "__main__":
    main()
