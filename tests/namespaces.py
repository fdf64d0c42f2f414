"""One training in either of Lightning's two namespaces; this module imports neither of them by itself."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

# this module must do without either name at import: tests.small has one
NAMESPACES = tuple(n for n in ("pytorch_lightning", "lightning.pytorch") if importlib.util.find_spec(n.split(".")[0]))


BATCHES, EPOCHS = 12, 9


each = pytest.mark.parametrize("namespace", NAMESPACES)


both = pytest.mark.skipif(len(NAMESPACES) < 2, reason="only one of the namespaces is installed")


def home(namespace: str) -> Any:
    """The namespace's package, with its callbacks and loggers."""
    for part in ("callbacks", "loggers"):
        importlib.import_module(f"{namespace}.{part}")
    return importlib.import_module(namespace)


class Net:
    """The body of a `LightningModule` of whatever namespace: a small net, and faults by batch number.

    Args:
        faults: `nan` (in the inputs) or `weight` (one set to NaN), by batch.
    """

    def __init__(self, faults: dict[int, str] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        self.faults = faults or {}

    def training_step(self: Any, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        fault = self.faults.get(self.trainer.fit_loop.epoch_loop.total_batch_idx)
        if fault == "nan":
            images = images * float("nan")
        if fault == "weight":
            with torch.no_grad():
                self.net[2].weight[0] = torch.nan
        loss = nn.functional.cross_entropy(self.net(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self: Any, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self: Any) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, BATCHES * EPOCHS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


def module(namespace: str, faults: dict[int, str] | None = None) -> Any:
    return type("Module", (Net, home(namespace).LightningModule), {})(faults)


def loaders(offset: int = 0) -> tuple[DataLoader[Any], DataLoader[Any]]:
    bunch: Any = load_digits()
    images, labels = torch.tensor(bunch.data, dtype=torch.float32) / 16.0, torch.tensor(bunch.target)
    parts = (slice(offset, offset + BATCHES * 16), slice(1024, 1088))
    train, held_out = (DataLoader(TensorDataset(images[p], labels[p]), batch_size=16) for p in parts)
    return train, held_out


def five() -> list[Any]:
    import lightning_lr as llr

    return [
        llr.LRMonitor(momentum=True),
        llr.DivergenceGuard(snapshot_every=10, save_snapshots=True),
        llr.PlateauDecay("val_loss", factor=0.5, patience=0, threshold=0.3, threshold_mode="abs"),
        llr.Warmup(8),
        llr.LRFinder(at=[0, 30], steps=20),
        llr.Cooldown(12, shape="1-sqrt"),
    ]


def trainer(namespace: str, root: Path, callbacks: list[Any], **settings: Any) -> Any:
    lightning = home(namespace)
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": EPOCHS,
        "default_root_dir": root,
        "logger": lightning.loggers.CSVLogger(root),
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 4,
    }
    return lightning.Trainer(callbacks=callbacks, **{**defaults, **settings})


def record(model: Any, callbacks: list[Any]) -> dict[str, Any]:
    """All that a run has to show, with every bit of its numbers."""
    monitor, guard, plateau, warmup, finder, _ = callbacks
    return {
        "weights": [p.tolist() for p in model.parameters()],
        "rates": monitor.rates,
        "changes": [repr(change) for change in monitor.changes],
        "story": [line for line in monitor.story if "MiB" not in line],
        "findings": [repr(finding) for finding in finder.findings],
        "guard": [guard.skips, guard.rewinds, guard.updates_lost],
        "plateau": repr(plateau.state),
        "ledger": repr(warmup.run.save()),
    }


def run(namespace: str, root: Path, faults: dict[int, str] | None = None) -> dict[str, Any]:
    model, callbacks = module(namespace, faults), five()
    trainer(namespace, root, callbacks).fit(model, *loaders())
    written = next(root.glob("lightning_logs/*/metrics.csv")).read_text()
    return {**record(model, callbacks), "csv": written}
