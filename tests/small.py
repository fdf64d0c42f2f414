"""Small real things that the tests train: digits, a linear model, a loader that resumes."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

# Lightning has two names: the table of ways to train is run under either
pl: Any = importlib.import_module(os.environ.get("LIGHTNING_NAMESPACE", "pytorch_lightning"))


@functools.cache
def digits(count: int = 256) -> tuple[Tensor, Tensor]:
    """Images, shape (count, 64), in [0, 1]; labels, shape (count,)."""
    bunch: Any = load_digits()
    return torch.tensor(bunch.data[:count], dtype=torch.float32) / 16.0, torch.tensor(bunch.target[:count])


class Loader:
    """Batches in another fixed order each epoch, that go on where a checkpoint left them."""

    def __init__(self, batches: int = 6, batch_size: int = 8, *, shuffle: bool = True, offset: int = 0) -> None:
        self.batches, self.batch_size, self.shuffle, self.offset = batches, batch_size, shuffle, offset
        self.sampler, self.epoch, self.at, self._resumed = self, 0, 0, False

    def __len__(self) -> int:
        return self.batches

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Tensor]]:
        self.at = self.at % self.batches if self._resumed else 0
        self._resumed = False
        images, labels = digits()
        while self.at < self.batches:
            seed = torch.Generator().manual_seed(self.epoch if self.shuffle else 0)
            order = torch.randperm(self.batches * self.batch_size, generator=seed)
            chosen = self.offset + order[self.at * self.batch_size : (self.at + 1) * self.batch_size]
            self.at += 1
            yield [images[chosen], labels[chosen]]

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at, self._resumed = state["at"], True


def held_out(batch_size: int = 64) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*(t[-64:] for t in digits())), batch_size=batch_size)


class Model(pl.LightningModule):
    """A linear classifier (or a small net) that keeps the rate of every real update.

    Args:
        configure: called with the module; what `configure_optimizers` returns.
        hidden: units of a hidden layer; 0: none.
    """

    def __init__(self, configure: Callable[[Any], Any], hidden: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Linear(64, hidden) if hidden else nn.Identity()
        self.head = nn.Linear(hidden or 64, 10)
        self._configure = configure
        self.trace: list[list[float]] = []
        self.at_rest: list[list[float]] = []

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.relu(self.backbone(images)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return self._configure(self)

    def on_train_start(self) -> None:
        for optimizer in self.trainer.optimizers:
            watch(optimizer, self.trace)

    def on_train_batch_end(self, *_: Any) -> None:
        self.at_rest.append([float(g["lr"]) for o in self.trainer.optimizers for g in o.param_groups])

    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.parameters()]


def watch(optimizer: torch.optim.Optimizer, trace: list[list[float]]) -> None:
    """Appends the rates of all groups to `trace` at the very moment of each step's end, before they are taken back."""
    step = type(optimizer).step

    def note(*args: Any, **kwargs: Any) -> None:
        trace.append([float(group["lr"]) for group in optimizer.param_groups])

    handle = optimizer.register_step_post_hook(note)
    # before the ledger's own hook, which takes the rates back
    optimizer._optimizer_step_post_hooks.move_to_end(handle.id, last=False)
    assert step is type(optimizer).step


def sgd(module: Any, lr: float = 0.1, **kwargs: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=lr, **kwargs)


def cosine(module: Any, updates: int = 24, lr: float = 0.1) -> Any:
    optimizer = sgd(module, lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def trainer(root: Any, **kwargs: Any) -> Any:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "default_root_dir": str(root),
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(**{**settings, **kwargs})


class Sharded(pl.LightningModule):
    """A net whose parameters are DTensors.

    Args:
        configure: gives the optimizer, from the net.
    """

    def __init__(self, configure: Callable[[Any], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.configure = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), configure

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])  # pyright: ignore

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return self.configure(self.net)


class Overflows(Model):
    """Its gradients overflow half precision in the first two batches."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * (float("inf") if self.trainer.fit_loop.total_batch_idx in (0, 1, 5) else 1.0)


class TwoOptimizers(Model):
    """Manual optimization: the second optimizer steps only in every other batch."""

    def __init__(self) -> None:
        super().__init__(
            lambda m: [torch.optim.SGD(m.backbone.parameters(), 0.1), torch.optim.SGD(m.head.parameters(), 0.1)], 8
        )
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()
        loss = torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
        first.zero_grad()
        second.zero_grad()
        self.manual_backward(loss)
        first.step()
        if batch_idx % 2 == 1:
            second.step()
