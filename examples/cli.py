"""The CNN of `examples/digits.py` with all five callbacks from a configuration file, by Lightning's `LightningCLI`.

Run `python examples/cli.py fit --config examples/cli.yaml`. What is written behind it counts for more than the file:
`--model.rate=10`, `--trainer.max_epochs=6`; `--print_config` prints every value that there is.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from digits import Classifier, calm, digits
from pytorch_lightning.cli import LightningCLI
from torch.utils.data import DataLoader

import lightning_lr as llr


class Digits(pl.LightningDataModule):
    """1,280 training and 517 held-out images of scikit-learn's digits.

    Args:
        batch_size: images in a training batch.
        seed: of the split and of the order.
    """

    def __init__(self, batch_size: int = 32, seed: int = 0) -> None:
        super().__init__()
        self.train, self.held_out = digits(batch_size, seed)

    def train_dataloader(self) -> DataLoader[Any]:
        return self.train

    def val_dataloader(self) -> DataLoader[Any]:
        return self.held_out


def main() -> None:
    calm()
    torch.set_num_threads(1)  # the model is too small for more

    trainer: Any = LightningCLI(Classifier, Digits).trainer
    for monitor in (callback for callback in trainer.callbacks if isinstance(callback, llr.LRMonitor)):
        print("\nWhat happened to the rate:")
        for line in monitor.story:
            print(f"  {line}")
    print(f"\nheld-out accuracy {trainer.callback_metrics['val_acc']:.3f}")
    print(f"Once more: python examples/cli.py fit --config {trainer.log_dir}/config.yaml")


if __name__ == "__main__":
    main()
