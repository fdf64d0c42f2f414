"""Healthy runs whose rate rises by plan: the guard leaves them alone, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import lightning_lr as llr
from tests.small import Loader, Model, digits, trainer


class Net(Model):
    """A small CNN, which AdamW moves far in its first updates at this rate, and soundly."""

    def __init__(self, schedule: Any) -> None:
        super().__init__(self._optimizer)
        self.schedule = schedule
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(512, 10),
        )

    def _optimizer(self, _: Any) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.004)
        schedule = self.schedule(optimizer)
        if schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images.view(-1, 1, 8, 8))


def linear_then_cosine(optimizer: Any) -> Any:
    parts = [lr_scheduler.LinearLR(optimizer, 0.025, 1.0, 40), lr_scheduler.CosineAnnealingLR(optimizer, 200)]
    return lr_scheduler.SequentialLR(optimizer, parts, [40])


PLANS = {
    "Warmup": (lambda o: None, [40]),
    "Warmup and cosine": (lambda o: lr_scheduler.CosineAnnealingLR(o, 240), [20]),
    "LinearLR and cosine": (linear_then_cosine, []),
    "LambdaLR": (lambda o: lr_scheduler.LambdaLR(o, lambda k: min(1.0, (k + 1) / 60)), []),
    "OneCycleLR": (lambda o: lr_scheduler.OneCycleLR(o, 0.008, total_steps=240), []),
    "CyclicLR": (lambda o: lr_scheduler.CyclicLR(o, 0.0004, 0.006, 30, cycle_momentum=False), []),
    "warm restarts": (lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 40), []),
}


@pytest.mark.parametrize("plan", PLANS)
def test_a_rate_that_rises_by_plan_is_no_alarm(plan: str, tmp_path: Path) -> None:
    schedule, warmups = PLANS[plan]

    def run(*more: Any) -> Model:
        model = Net(schedule)
        callbacks = [*(llr.Warmup(steps) for steps in warmups), *more]
        trainer(tmp_path, callbacks=callbacks, max_epochs=20).fit(model, Loader(12, 16))
        return model

    guard = llr.DivergenceGuard()
    guarded, plain = run(guard), run()
    assert (guard.skips, guard.rewinds) == (0, 0)
    assert all(torch.equal(a, b) for a, b in zip(guarded.weights(), plain.weights(), strict=True))


def test_a_rate_that_the_finder_tried_out_is_not_held_too_hot(tmp_path: Path) -> None:
    model = Model(lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3), 16)
    guard = llr.DivergenceGuard()
    callbacks = llr.autopilot("train_loss", guard=guard, lr_monitor=None, plateau=None, warmup={"steps": 13})
    trainer(tmp_path, callbacks=callbacks, max_epochs=16).fit(model, Loader(16, 16))
    assert (guard.skips, guard.rewinds) == (0, 0)


SMALL = {
    # hidden units, batch, optimizer, a rate at or below the best of a grid: each was rewound to its ruin once
    "linear, batches of 4, SGD": (0, 4, lambda ps: torch.optim.SGD(ps, lr=1.0)),
    "linear, batches of 4, a third of the best rate": (0, 4, lambda ps: torch.optim.SGD(ps, lr=0.32)),
    "linear, batches of 4, momentum": (0, 4, lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9)),
    "linear, batches of 32, a tenth of the best rate": (0, 32, lambda ps: torch.optim.AdamW(ps, lr=0.032)),
    "eight hidden units, SGD": (8, 32, lambda ps: torch.optim.SGD(ps, lr=0.32)),
    "eight hidden units, AdamW": (8, 32, lambda ps: torch.optim.AdamW(ps, lr=0.01)),
}


class Small(Model):
    """Trains on batches drawn with replacement, as many as the loader has."""

    def __init__(self, hidden: int, batch: int, optimizer: Any) -> None:
        super().__init__(lambda module: optimizer(module.parameters()), hidden)
        self.batch, self.drawn = batch, torch.Generator().manual_seed(3)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        images, labels = digits(768)
        chosen = torch.randint(0, 768, (self.batch,), generator=self.drawn)
        return nn.functional.cross_entropy(self(images[chosen]), labels[chosen])


@pytest.mark.parametrize("name", SMALL)
def test_a_small_net_near_its_best_rate_is_left_alone(name: str, tmp_path: Path) -> None:
    guard, model = llr.DivergenceGuard(snapshot_every=10), Small(*SMALL[name])
    trainer(tmp_path, callbacks=[guard], max_epochs=1).fit(model, Loader(130, 1))
    assert (guard.skips, guard.rewinds) == (0, 0)


@pytest.mark.parametrize(("hidden", "rate"), [(8, 3.2), (16, 32.0)])
def test_a_small_net_that_its_rate_kills_learns_after_all(hidden: int, rate: float, tmp_path: Path) -> None:
    guard = llr.DivergenceGuard(snapshot_every=10)
    model = Small(hidden, 32, lambda ps: torch.optim.SGD(ps, lr=rate))
    trainer(tmp_path, callbacks=[guard], max_epochs=2).fit(model, Loader(200, 1))
    images, labels = (tensor[-256:] for tensor in digits(1024))
    with torch.no_grad():
        assert float(nn.functional.cross_entropy(model(images), labels)) < 1.0
    assert guard.rewinds
