"""A small CNN on scikit-learn's digits that needs no learning rate: `--rate` may be anything from 1e-6 to 100.

`autopilot` finds the rate in the run's first updates, decays on a plateau on top of the model's own cosine schedule,
and tells the story. Run `python examples/digits.py`, then open TensorBoard as its last line says.
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_lr as llr


def digits(batch_size: int = 32, seed: int = 0) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Loaders of 1,280 training and 517 held-out images, each of shape (1, 8, 8), with values in [0, 1]."""
    bunch: Any = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16.0
    labels = torch.tensor(bunch.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    train, held_out = order[:1280], order[1280:]
    shuffle = torch.Generator().manual_seed(seed)
    return (
        DataLoader(TensorDataset(images[train], labels[train]), batch_size=batch_size, shuffle=True, generator=shuffle),
        DataLoader(TensorDataset(images[held_out], labels[held_out]), batch_size=517),
    )


class Classifier(pl.LightningModule):
    """A CNN of 13,706 parameters, with AdamW and a cosine schedule by update.

    Args:
        rate: the peak rate, absolute.
        updates: the length of the cosine, in updates.
    """

    def __init__(self, rate: float, updates: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 17),
            nn.ReLU(),
            nn.Linear(17, 10),
        )

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        logits = self.net(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]), prog_bar=True, sync_dist=True)
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean(), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams["rate"])
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.hparams["updates"])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


def calm() -> None:
    """Leaves out what says nothing of these runs: advice for large data, and Lightning's own use of torch."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*(LeafSpec|all_gather).*is deprecated.*")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rate", type=float, default=3e-3, help="peak rate that the optimizer is given (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=int, default=20, help="epochs of 40 updates (default: %(default)s)")
    parser.add_argument("--logs", default="logs", help="folder for TensorBoard (default: %(default)s)")
    args = parser.parse_args()
    calm()
    torch.set_num_threads(1)  # the model is too small for more

    pl.seed_everything(0, verbose=False)
    train, held_out = digits()
    autopilot = llr.autopilot("val_loss", plateau={"factor": 0.5, "patience": 1}, lr_monitor={"prog_bar": True})
    tensorboard = TensorBoardLogger(args.logs, name="digits", default_hp_metric=False)
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        # the CSV file needs a folder of its own: it takes one over with all that is in it
        logger=[tensorboard, CSVLogger(tensorboard.log_dir, name="csv", version=tensorboard.version)],
        log_every_n_steps=10,
        callbacks=[*autopilot, TQDMProgressBar(refresh_rate=10)],
    )
    trainer.fit(Classifier(args.rate, updates=args.epochs * len(train)), train, held_out)

    print("\nWhat happened to the rate:")
    for line in autopilot[-1].story:
        print(f"  {line}")
    print(f"\nheld-out accuracy {trainer.callback_metrics['val_acc']:.3f}")
    print(f"See it: tensorboard --logdir {tensorboard.log_dir}, then http://localhost:6006/#lightning_lr")


if __name__ == "__main__":
    main()
