"""The table of ways to train: models, settings, data and other callbacks, each made afresh for every run."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import IterableDataset

from tests.small import Loader, Model, digits, held_out, pl

EPOCHS, BATCHES, SIZE = 4, 18, 8
RATE = 0.1
cb = pl.callbacks

# models ------------------------------------------------------------------------------------------------------------


def momentum(module: Any, lr: float = RATE) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9)


def adamw(module: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=3e-3)


def scheduled(make: Callable[[Any], Any], interval: str = "step", **more: Any) -> Callable[[Any], Any]:
    """`configure_optimizers` with one scheduler over `momentum`."""
    return functools.partial(_scheduled, make, {"interval": interval, **more})


def _scheduled(make: Callable[[Any], Any], how: dict[str, Any], module: Any) -> Any:
    optimizer = momentum(module)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": make(optimizer), **how}}


def cosine(optimizer: Any) -> Any:
    return lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * BATCHES)


def sequence(optimizer: Any) -> Any:
    first = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=8)
    return lr_scheduler.SequentialLR(optimizer, [first, lr_scheduler.ExponentialLR(optimizer, 0.98)], milestones=[8])


class Net(Model):
    """The small net of the other tests, whose loss may be left out."""

    def __init__(self, configure: Callable[[Any], Any] | None = None, *, none_every: int = 0) -> None:
        super().__init__(configure or scheduled(cosine), 16)
        self.none_every = none_every

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return None if self.none_every and batch_idx % self.none_every == 1 else loss


class Silent(Net):
    """Logs nothing in training, which `torch.compile` can't follow."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])


class Random(Net):
    """What a training step may also change: running statistics, and random numbers."""

    def __init__(self) -> None:
        super().__init__(adamw)
        self.norm, self.drop = nn.BatchNorm1d(64), nn.Dropout(0.2)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(self.drop(self.norm(images)))


class Several(Net):
    """Batches that hold several parts: a dict or a list of [images, labels]."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        parts = batch.values() if isinstance(batch, dict) else batch
        losses = [nn.functional.cross_entropy(self(part[0]), part[1]) for part in parts if part is not None]
        self.log("train_loss", losses[0])
        return torch.stack(losses).sum()


class Manual(Net):
    """Manual optimization: one optimizer for each part of the net, schedulers stepped by hand.

    Args:
        count: of optimizers, 1 to 3.
        closure: whether the step gets a closure.
        apart: whether each optimizer has a loss, and a training pass, of its own.
        every: batches for one update (accumulation by hand).
    """

    def __init__(self, count: int, *, closure: bool = False, apart: bool = False, every: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.middle = nn.Linear(16, 16)
        self.count, self.closure, self.apart, self.every = count, closure, apart, every

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.relu(self.middle(torch.relu(self.backbone(images)))))

    def configure_optimizers(self) -> Any:
        parts = {1: [self], 2: [self.backbone, nn.ModuleList([self.middle, self.head])]}
        split = parts.get(self.count, [self.backbone, self.middle, self.head])
        optimizers = [momentum(part, RATE / (i + 1)) for i, part in enumerate(split)]
        return optimizers, [cosine(o) for o in optimizers]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizers, schedulers = self.optimizers(), self.lr_schedulers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        schedulers = schedulers if isinstance(schedulers, list) else [schedulers]

        def backward() -> Tensor:
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            self.log("train_loss", loss)
            self.manual_backward(loss / self.every)
            return loss

        if self.apart:
            for optimizer in optimizers:
                self.toggle_optimizer(optimizer)
                optimizer.zero_grad()
                backward()
                optimizer.step()
                self.untoggle_optimizer(optimizer)
        elif self.closure:
            for optimizer in optimizers:
                optimizer.zero_grad()
                optimizer.step(backward)
        else:
            backward()
            if (batch_idx + 1) % self.every:
                return
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        for scheduler in schedulers:
            scheduler.step()


class Gan(pl.LightningModule):
    """A generator of digits and its judge: two optimizers, each with a loss of its own in every batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64), nn.Sigmoid())
        self.judge = nn.Sequential(nn.Linear(64, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))

    def configure_optimizers(self) -> Any:
        betas = (0.5, 0.9)
        return [torch.optim.Adam(part.parameters(), 1e-3, betas) for part in (self.generator, self.judge)]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()
        real, loss = batch[0], nn.functional.binary_cross_entropy_with_logits
        made = self.generator(torch.randn(len(real), 8))
        self.toggle_optimizer(first)
        fooled = self.judge(made)
        lost = loss(fooled, torch.ones_like(fooled))
        self.manual_backward(lost)
        first.step()
        first.zero_grad()
        self.untoggle_optimizer(first)
        self.toggle_optimizer(second)
        true, false = self.judge(real), self.judge(made.detach())
        found = loss(true, torch.ones_like(true)) + loss(false, torch.zeros_like(false))
        self.manual_backward(found)
        second.step()
        second.zero_grad()
        self.untoggle_optimizer(second)
        self.log("train_loss", found + lost)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.judge(batch[0]).square().mean())


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimisation around SGD: the closure runs twice, the second time at a worse place nearby."""

    def __init__(self, params: Any, lr: float, radius: float = 0.05) -> None:
        super().__init__(params, {"lr": lr, "radius": radius})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = torch.enable_grad()(closure)()
        held = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not held:
            return loss
        norm = torch.stack([p.grad.norm() for p, _ in held]).norm()
        moved = [p.grad * (group["radius"] / (norm + 1e-12)) for p, group in held]
        for (p, _), move in zip(held, moved, strict=True):
            p.add_(move)
        torch.enable_grad()(closure)()
        for (p, group), move in zip(held, moved, strict=True):
            p.sub_(move)
            if p.grad is not None:
                p.add_(p.grad, alpha=-group["lr"])
        return loss


def trained(module: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=RATE, momentum=0.9)


def lbfgs(module: Any) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(module.parameters(), lr=0.03, max_iter=2, history_size=4)


def groups(module: Any) -> Any:
    parts = [{"params": module.backbone.parameters(), "lr": 0.02}, {"params": module.head.parameters()}]
    optimizer = torch.optim.AdamW(parts, lr=5e-3)
    return [optimizer], [lr_scheduler.StepLR(optimizer, 1, 0.7)]


def compiled_inside() -> Any:
    model = Net()
    model.head = torch.compile(model.head, backend="eager")  # pyright: ignore[reportAttributeAccessIssue]
    return model


# data --------------------------------------------------------------------------------------------------------------


class Stream(IterableDataset):  # pyright: ignore[reportMissingTypeArgument]
    """Batches without a length."""

    def __iter__(self) -> Iterator[list[Tensor]]:
        images, labels = digits()
        for at in range(BATCHES):
            yield [images[SIZE * at : SIZE * at + SIZE].clone(), labels[SIZE * at : SIZE * at + SIZE]]


def loader() -> Any:
    # the share of each rank differs, in size too
    rank = int(os.environ.get("RANK", 0))
    return Loader(BATCHES, SIZE - rank, offset=4 * rank)


def stream() -> Any:
    return torch.utils.data.DataLoader(Stream(), batch_size=None)


def combined(mode: str) -> Any:
    return pl.utilities.CombinedLoader({"one": Loader(BATCHES, SIZE), "two": Loader(BATCHES - 4, SIZE)}, mode)


# the table ---------------------------------------------------------------------------------------------------------


def scaler(scale: float = 2.0**8) -> list[Any]:
    made = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10)  # pyright: ignore
    return [pl.plugins.MixedPrecision("16-mixed", "cpu", made)]


@dataclass(frozen=True)
class Way:
    """One way to train; all that it names is made anew for each run.

    Args:
        model: the module.
        settings: of the `Trainer`.
        others: callbacks of Lightning's own that are there in every run, for a folder.
        data: what `fit` gets to train on.
        validates: whether there is validation data.
        whole: whether the run is long enough for a sweep, a skip and a rewind.
        without: the names of our callbacks that refuse, or have nothing to do, here.
        faults: whether a NaN is for the guard, and not for somebody else, to see.
        resumes: whether stock Lightning, resumed in the middle, ends as if uninterrupted.
        wraps: what is done to the model before `fit`.
    """

    model: Callable[[], Any] = Net
    settings: Callable[[], dict[str, Any]] = dict
    others: Callable[[Path], list[Any]] = field(default=lambda _: [])
    data: Callable[[], Any] = loader
    validates: bool = True
    whole: bool = True
    without: tuple[str, ...] = ()
    faults: bool = True
    resumes: bool = True
    wraps: Callable[[Any], Any] = field(default=lambda model: model)


def of(**settings: Any) -> Callable[[], dict[str, Any]]:
    return lambda: dict(settings)


def net(configure: Any, **more: Any) -> Callable[[], Any]:
    return functools.partial(Net, configure, **more)


def checkpoints(root: Path) -> list[Any]:
    return [
        cb.ModelCheckpoint(root / "steps", every_n_train_steps=5, save_top_k=2, monitor="step", mode="max"),
        cb.ModelCheckpoint(root / "best", monitor="val_loss", save_weights_only=True, save_last=True),
    ]


WAYS: dict[str, Way] = {
    # precision, clipping, accumulation
    "plain": Way(),
    "batch norm, dropout": Way(Random, resumes=False),
    "bf16-mixed": Way(settings=of(precision="bf16-mixed")),
    "bf16-true": Way(settings=of(precision="bf16-true")),
    "64-true": Way(settings=of(precision="64-true"), resumes=False),
    "16-mixed": Way(settings=lambda: {"plugins": scaler()}),
    "16-mixed that calibrates": Way(settings=lambda: {"plugins": scaler(2.0**24), "max_epochs": 6}),
    "clipped by norm": Way(settings=of(gradient_clip_val=0.3)),
    "clipped by value": Way(settings=of(gradient_clip_val=0.02, gradient_clip_algorithm="value")),
    "accumulation": Way(net(scheduled(cosine)), of(accumulate_grad_batches=2, max_epochs=2 * EPOCHS)),
    "accumulation that leaves a rest": Way(settings=of(accumulate_grad_batches=4, max_epochs=3 * EPOCHS)),
    "accumulation, clipped, 16-mixed": Way(
        settings=lambda: {
            "plugins": scaler(),
            "accumulate_grad_batches": 2,
            "gradient_clip_val": 0.3,
            "max_epochs": 2 * EPOCHS,
        }
    ),
    "accumulation by a schedule": Way(
        settings=of(max_epochs=2 * EPOCHS),
        others=lambda _: [cb.GradientAccumulationScheduler({0: 1, 2: 3})],
        resumes=False,
    ),
    # optimizers and schedulers
    "no schedule": Way(net(momentum)),
    "AdamW": Way(net(adamw)),
    "two groups, by epoch": Way(net(groups)),
    "one cycle": Way(net(scheduled(lambda o: lr_scheduler.OneCycleLR(o, RATE, total_steps=EPOCHS * BATCHES + 1)))),
    "a lambda": Way(net(scheduled(lambda o: lr_scheduler.LambdaLR(o, lambda k: 0.98**k)))),
    "a sequence": Way(net(scheduled(sequence))),
    "every third step": Way(net(scheduled(lambda o: lr_scheduler.ExponentialLR(o, 0.9), frequency=3))),
    "ReduceLROnPlateau": Way(
        net(scheduled(lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0), "epoch", monitor="val_loss")),
        resumes=False,
    ),
    "LBFGS": Way(net(lbfgs)),
    "SAM": Way(net(lambda m: Sam(m.parameters(), RATE))),
    "no loss at times": Way(functools.partial(Net, none_every=5)),
    # manual optimization
    "manual": Way(lambda: Manual(1)),
    "manual, 16-mixed": Way(lambda: Manual(1), lambda: {"plugins": scaler()}),
    "manual with closures": Way(lambda: Manual(2, closure=True)),
    "manual accumulation": Way(lambda: Manual(1, every=2), of(max_epochs=2 * EPOCHS)),
    "two optimizers": Way(lambda: Manual(2)),
    "three optimizers": Way(lambda: Manual(3)),
    "three optimizers, each its pass": Way(lambda: Manual(3, apart=True)),
    "GAN": Way(Gan, resumes=False),
    # Lightning's own callbacks
    "averaged weights (SWA)": Way(
        others=lambda _: [cb.StochasticWeightAveraging(0.05, swa_epoch_start=3, annealing_epochs=2)], resumes=False
    ),
    "unfreezing": Way(
        net(trained),
        of(max_epochs=6),
        others=lambda _: [cb.BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.01)],
        resumes=False,
    ),
    # a Cooldown that is at work makes it longer: see test_cooldown.py
    "early stopping": Way(
        others=lambda _: [cb.EarlyStopping("val_loss", patience=1, min_delta=10.0)], whole=False, without=("Cooldown",)
    ),
    "checkpoints by step, by metric, of weights": Way(others=checkpoints),
    "beside LearningRateMonitor": Way(
        settings=lambda: {"logger": True},
        others=lambda _: [cb.LearningRateMonitor(log_momentum=True)],
        without=("LRMonitor",),
    ),
    "a timer": Way(others=lambda _: [cb.Timer("00:01:00:00")], settings=of(max_time="00:02:00:00")),
    "after Lightning's LearningRateFinder": Way(
        # it wants an attribute for what it finds
        lambda: _rated(),
        others=lambda _: [cb.LearningRateFinder(num_training_steps=12, early_stop_threshold=None)],
        resumes=False,
    ),
    "progress bars": Way(settings=of(enable_progress_bar=True, enable_model_summary=True)),
    # data and length
    "no length": Way(data=stream, settings=of(use_distributed_sampler=False), resumes=False, without=("Cooldown",)),
    "several loaders, shortest": Way(lambda: Several(), data=lambda: combined("min_size"), resumes=False),
    "several loaders, longest": Way(lambda: Several(), data=lambda: combined("max_size"), resumes=False),
    "limited": Way(settings=of(limit_train_batches=0.5, limit_val_batches=1, max_epochs=2 * EPOCHS)),
    "validation within the epoch": Way(settings=of(val_check_interval=0.25)),
    "validation beyond the epoch": Way(settings=of(val_check_interval=25, check_val_every_n_epoch=None)),
    "validation every other epoch": Way(settings=of(check_val_every_n_epoch=2, num_sanity_val_steps=2, max_epochs=8)),
    "no validation": Way(validates=False),
    "max_steps": Way(settings=of(max_steps=65, max_epochs=-1)),
    "fast_dev_run": Way(settings=of(fast_dev_run=True), whole=False, resumes=False),
    "fast_dev_run of 7": Way(settings=of(fast_dev_run=7), whole=False, resumes=False),
    "overfit_batches": Way(settings=of(overfit_batches=3, max_epochs=20), resumes=False),
    "reloaded every epoch": Way(settings=of(reload_dataloaders_every_n_epochs=1)),
    "anomaly detection, profiler": Way(settings=of(detect_anomaly=True, profiler="simple"), faults=False),
    "compiled": Way(Silent, wraps=lambda model: torch.compile(model, backend="eager")),
    "compiled inside": Way(compiled_inside),
}
if hasattr(cb, "EMAWeightAveraging"):
    WAYS["averaged weights (EMA)"] = Way(others=lambda _: [cb.EMAWeightAveraging(decay=0.9)])


def _rated() -> Any:
    model = Net(lambda module: momentum(module, module.lr))
    model.lr = 0.07  # pyright: ignore[reportAttributeAccessIssue]
    return model


def validation() -> Any:
    return held_out()
