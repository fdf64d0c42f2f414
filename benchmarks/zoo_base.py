"""The base of the zoo's trainings: one small task with, if wanted, one fault."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

FAULTS = [
    "rate x10",
    "rate x100, 50 updates",
    "inputs x100, 30 batches",
    "constant inputs, 20 batches",
    "a layer x10",
    "a layer of noise",
    "5% of weights zero",
    "exp_avg_sq zeroed",
    "beta2 0.1",
    "targets +100, 10 batches",
    "NaN in every 50th batch",
    "loss times -1, 15 batches",
    "same batch, 100 updates",
]
LENGTHS = {"inputs x100, 30 batches": 30, "constant inputs, 20 batches": 20, "targets +100, 10 batches": 10}


def first_optimizer(configured: Any) -> torch.optim.Optimizer:
    """The first optimizer of what `configure_optimizers` returned."""
    while isinstance(configured, list | tuple):
        configured = configured[0]
    return configured["optimizer"] if isinstance(configured, dict) else configured


class Kind(pl.LightningModule):
    """A training of one kind. Subclasses give `rate` (tuned), `build`, `draw`, `loss`, `optimizer` and `score`.

    A parameter group with a `share` has that share of the rate, also when a fault sets the rate.

    Args:
        seed: of weights, batches and the fault's place.
        fault: one of `FAULTS`, from two fifths of the run on; None: none.
        times: of the tuned rate.
        updates: how many; None: the kind's own number.
    """

    rate: ClassVar[float] = 1e-3
    updates: ClassVar[int] = 600
    loss_falls: ClassVar[bool] = True

    def __init__(self, seed: int = 0, fault: str | None = None, times: float = 1.0, updates: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.seed, self.fault, self.times = seed, fault, times
        self.length = updates or type(self).updates
        self.at = int(self.length * 0.4) + seed * 13 % 40
        self.batch_number = 0
        self.build()

    # what a kind gives -----------------------------------------------------------------------------------------

    def build(self) -> None:
        """Makes the net and whatever data it needs."""
        raise NotImplementedError

    def draw(self, k: int, random: torch.Generator) -> Any:
        """Batch `k`: a tuple of tensors, inputs first, targets second."""
        raise NotImplementedError

    def loss(self, batch: Any, k: int) -> Tensor:
        """The training loss of batch `k`."""
        raise NotImplementedError

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=rate)

    def score(self) -> float:
        """How good the weights are on held-out data: lower is better, finite for finite weights."""
        raise NotImplementedError

    def before(self, k: int, optimizer: torch.optim.Optimizer) -> None:
        """What a healthy training of this kind does before batch `k`."""

    def after(self, k: int) -> None:
        """What a healthy training of this kind does after batch `k`."""

    # faults ----------------------------------------------------------------------------------------------------

    def since(self) -> int:
        return self.batch_number - self.at

    def get(self, k: int) -> Any:
        """Batch `k` with the data faults."""
        fault, d = self.fault or "", k - self.at
        if fault.startswith("same batch") and 0 <= d < 100:
            k = self.at
        batch = self.draw(k, torch.Generator().manual_seed(self.seed * 100003 + k))
        if 0 <= d < LENGTHS.get(fault, 0):
            batch = self.spoil(batch, fault)
        if fault.startswith("NaN in every") and d >= 0 and d % 50 == 0:
            batch = self.changed(batch, 0, lambda x: x * math.nan)
        return batch

    def spoil(self, batch: Any, fault: str) -> Any:
        if fault.startswith("inputs"):
            return self.changed(batch, 0, lambda x: x * 100)
        if fault.startswith("constant"):
            return self.changed(batch, 0, lambda x: torch.full_like(x, 0.5))
        return self.changed(batch, 1, lambda x: x + 100)

    def felt(self) -> bool:
        """Whether the fault changes anything for this kind."""
        if self.fault in ("exp_avg_sq zeroed", "beta2 0.1"):
            return bool(first_optimizer(self.configure_optimizers()).defaults.get("betas"))
        if self.fault in LENGTHS or (self.fault or "").startswith("NaN in every"):
            random = torch.Generator().manual_seed(self.seed * 100003 + self.at)
            healthy, spoilt = self.draw(self.at, random), self.get(self.at)
            pairs = [(a, b) for a, b in zip(healthy, spoilt, strict=True) if isinstance(a, Tensor)]
            return not all(torch.equal(a, b) for a, b in pairs)
        return self.fault is not None

    def changed(self, batch: Any, place: int, change: Any) -> Any:
        """The batch with its tensor at `place` changed, if it has one of real numbers there."""
        parts = list(batch)
        if place < len(parts) and isinstance(parts[place], Tensor) and parts[place].is_floating_point():
            parts[place] = change(parts[place])
        return tuple(parts)

    @torch.no_grad()
    def before_batch(self, k: int, optimizer: torch.optim.Optimizer) -> None:
        """Faults of rate, weights and optimizer, before batch `k`."""
        self.batch_number = k
        self.before(k, optimizer)
        fault, d = self.fault or "", k - self.at
        if fault.startswith("rate") and d >= 0:
            raised = 10.0 if fault == "rate x10" else 100.0 if d < 50 else 1.0
            for group in optimizer.param_groups:
                group["lr"] = self.rate * self.times * raised * group.get("share", 1.0)
        if d != 0:
            return
        matrices = [p for p in self.parameters() if p.requires_grad and p.dim() > 1]
        weights = matrices[len(matrices) // 2] if matrices else max(self.parameters(), key=lambda p: p.numel())
        random = torch.Generator().manual_seed(self.seed)
        if fault == "a layer x10":
            weights.mul_(10)
        elif fault == "a layer of noise":
            weights.copy_(torch.randn(weights.shape, generator=random) * weights.std() * 3)
        elif fault == "5% of weights zero":
            for p in self.parameters():
                p.mul_((torch.rand(p.shape, generator=random) >= 0.05).to(p.dtype))
        elif fault == "exp_avg_sq zeroed":
            for state in optimizer.state.values():
                if "exp_avg_sq" in state:
                    state["exp_avg_sq"].zero_()
        elif fault == "beta2 0.1":
            for group in optimizer.param_groups:
                if "betas" in group:
                    group["betas"] = (group["betas"][0], 0.1)

    # the training ----------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.rate * self.times)

    def train_dataloader(self) -> Any:
        kind = self

        class Stream(IterableDataset[Any]):
            def __iter__(self) -> Iterator[Any]:
                return (kind.get(k) for k in range(kind.length))

        return DataLoader(Stream(), batch_size=None)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        self.before_batch(batch_idx, optimizers[0] if isinstance(optimizers, list) else optimizers)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.after(batch_idx)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch, batch_idx)
        if (self.fault or "").startswith("loss times -1") and 0 <= self.since() < 15:
            loss = -loss
        return loss

    @torch.no_grad()
    def held_out(self) -> float:
        self.eval()
        value = float(self.score())
        self.train()
        return value if math.isfinite(value) else math.inf
