"""A small net with faults by batch number, and fits of it: for all who watch the guard."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_lr.callbacks.divergence import DivergenceError, DivergenceGuard
from tests.small import Loader, Model, held_out, trainer

BATCHES = 12


NAN = math.nan


def adamw(module: Any, lr: float = 3e-3) -> Any:
    return torch.optim.AdamW(module.parameters(), lr=lr)


def momentum(module: Any, lr: float = 0.05) -> Any:
    return torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9)


class Faulty(Model):
    """A small net with faults by batch number, on the ranks named.

    Faults: `nan` (in the inputs), `grad` (NaN in one gradient), `loss` (times 1e6), `nanloss` (NaN), `weight` (some set
    to NaN), `huge` (some of them set to 1e30).
    """

    def __init__(
        self, configure: Callable[[Any], Any] = adamw, faults: dict[int, str] | None = None, **more: Any
    ) -> None:
        super().__init__(configure, hidden=more.pop("hidden", 32))
        self.faults, self.rank = faults or {}, more.pop("rank", None)
        self.norm = nn.BatchNorm1d(64)
        self.finite_at_rest: list[bool] = []
        self.seen_by_validation: list[bool] = []

    @property
    def fault(self) -> str | None:
        if self.rank is not None and self.rank != self.global_rank:
            return None
        return self.faults.get(self.trainer.fit_loop.epoch_loop.total_batch_idx)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        if self.fault == "nan":
            images = images * NAN
        if self.fault in ("weight", "huge"):
            with torch.no_grad():
                self.head.weight[0, :] = NAN if self.fault == "weight" else 1e30
        loss = nn.functional.cross_entropy(self(self.norm(images)), labels)
        return loss * {"loss": 1e6, "nanloss": NAN}.get(self.fault or "", 1.0)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.seen_by_validation.append(self.is_finite())
        self.log("val_loss", nn.functional.cross_entropy(self(self.norm(batch[0])), batch[1]))

    def on_after_backward(self) -> None:
        if self.fault == "grad":
            assert self.head.bias.grad is not None
            self.head.bias.grad[0] = NAN

    def on_train_batch_end(self, *_: Any) -> None:
        super().on_train_batch_end()
        self.finite_at_rest.append(self.is_finite())

    def is_finite(self) -> bool:
        return all(bool((t.abs() < 1e20).all()) for t in self.state_dict().values())


def fit(model: pl.LightningModule, root: Any, *callbacks: Any, epochs: int = 6, **more: Any) -> pl.Trainer:
    ckpt_path = more.pop("ckpt_path", None)
    made = trainer(root, max_epochs=epochs, callbacks=list(callbacks), **more)
    made.fit(model, Loader(BATCHES, 16), held_out(), ckpt_path=ckpt_path)
    return made


def state(model: Model, made: pl.Trainer) -> list[Any]:
    found: list[Any] = [t.clone() for t in model.state_dict().values()]
    for optimizer in made.optimizers:
        for p in model.parameters():
            for value in optimizer.state.get(p, {}).values():
                found.append(value.clone() if isinstance(value, Tensor) else value)
    return found


def same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(a, b, strict=True)
    )


def fit_on_a_rank(root: str, faults: dict[int, str], **settings: Any) -> Any:
    model, guard = Faulty(faults=faults, rank=1), DivergenceGuard(snapshot_every=10, **settings)
    made = trainer(root, max_epochs=8, callbacks=[guard], devices=2, strategy="ddp")
    error = ""
    try:
        made.fit(model, Loader(BATCHES, 16, offset=16 * made.global_rank), held_out())
    except DivergenceError as raised:
        error = str(raised)
    values = [v.tolist() if isinstance(v, Tensor) else v for v in state(model, made)[: len(model.weights())]]
    moments = [p.tolist() for s in made.optimizers[0].state.values() for p in s.values()]
    decisions = [s.to_dict() for s in guard.states]
    return values, moments, decisions, guard.skips, guard.rewinds, error
