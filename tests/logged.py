"""Schedules that change rates in a known way, and loggers that are read back: for all who look at the record."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch

from tests.small import Model, sgd


def groups(model: Any) -> Any:
    return torch.optim.Adam([{"params": [model.head.weight]}, {"params": [model.head.bias], "lr": 0.5}], lr=0.1)


def two_of_a_type(model: Any) -> Any:
    return [torch.optim.Adam(model.head.parameters(), 0.1), torch.optim.Adam(model.backbone.parameters(), 0.2)]


def stairs(model: Any) -> Any:
    optimizer = sgd(model)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [101, 105, 230], gamma=0.2)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Remote(pl.loggers.Logger):
    """A logger for which each call is a request."""

    name, version, experiment = "remote", 0, None

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.calls.append((step, dict(metrics)))

    def log_hyperparams(self, *_: Any) -> None:
        pass

    def curve(self, tag: str) -> list[tuple[int, float]]:
        return [(step, row[tag]) for step, row in self.calls if tag in row]


def bumpy(model: Any) -> Any:
    """A slow decay, with a drop to a tenth at update 43."""
    optimizer = sgd(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 0.99**k * (0.1 if k >= 43 else 1.0))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def tensorboard(root: Any, name: str = "tb") -> Any:
    return pl.loggers.TensorBoardLogger(root, name=name, version=0, default_hp_metric=False)


class Ends(Model):
    """With an error of a kind at one step."""

    def __init__(self, error: Any) -> None:
        super().__init__(sgd)
        self.error = error

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == 7:
            if self.error is None:
                self.trainer.should_stop = True
            else:
                raise self.error
        return super().training_step(batch, batch_idx)
