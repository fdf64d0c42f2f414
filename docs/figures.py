"""The figures of the manual, from small runs on scikit-learn's digits: python docs/figures.py [FOLDER] [NAME...].

It takes about a minute on one core, and needs the extra `examples`.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers.logger import Logger
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_lr as llr

UPDATES = 40
"""In an epoch."""

RATE, TIMES = 0.03, 30.0
"""A rate that suits the net with SGD and momentum, and by how much that of the rescued run is too high."""

NAN_AT, BROKEN_AT = 300, 400
"""The updates at which a batch is NaN, and at which one layer's weights become 30 times as large."""


class Digits(pl.LightningModule):
    """A small CNN that keeps its losses.

    Args:
        rate: of the optimizer, absolute.
        cosine: the length of a cosine schedule, in updates; 0: none.
        adam: AdamW in place of SGD with momentum.
        frozen: the epoch at whose start all but the last layer get a param group; 0: they have one from the start.
    """

    def __init__(self, rate: float, *, cosine: int = 0, adam: bool = False, frozen: int = 0) -> None:
        super().__init__()
        self.rate, self.cosine, self.adam, self.frozen = rate, cosine, adam, frozen
        self.losses, self.checks = list[float](), list[tuple[int, float]]()
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)),
        )

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(float(loss.detach()))
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.checks.append((self.global_step, float(loss)))
        self.log("val_loss", loss)

    def configure_optimizers(self) -> Any:
        kind = torch.optim.AdamW if self.adam else partial(torch.optim.SGD, momentum=0.9)
        groups: list[dict[str, Any]] = [{"params": list(self.net.parameters())}]
        if self.frozen:
            groups = [{"params": list(self.net[-1].parameters()), "name": "head"}]
        optimizer = kind(groups, lr=self.rate)
        if not self.cosine:
            return optimizer
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.cosine)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        if self.frozen and self.current_epoch == self.frozen:
            backbone = [weight for layer in self.net[:-1] for weight in layer.parameters()]
            self.optimizers(use_pl_optimizer=False).add_param_group({"params": backbone, "name": "backbone"})  # pyright: ignore


class Faults(pl.Callback):
    """A batch of NaN, and weights that break."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.total_batch_idx == NAN_AT:
            batch[0].fill_(float("nan"))
        if trainer.fit_loop.total_batch_idx == BROKEN_AT:
            pl_module.net[3].weight.data.mul_(30.0)


class Kept(Logger):
    """Keeps what is logged, by name: steps and values."""

    name, version = "kept", 0

    def __init__(self) -> None:
        super().__init__()
        self.points: dict[str, list[tuple[int, float]]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            self.points.setdefault(name, []).append((step or 0, value))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def train(model: Digits, *callbacks: Any, epochs: int = 15, logger: Any = False, checked: bool = True) -> Digits:
    pl.seed_everything(0, verbose=False)
    # the same weights for all, whenever the module was made
    for layer in model.net:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    bunch: Any = load_digits()
    images, labels = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16.0, torch.tensor(bunch.target)
    data = DataLoader(TensorDataset(images[:1280], labels[:1280]), 32, shuffle=True)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=logger,
        log_every_n_steps=5,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data, DataLoader(TensorDataset(images[1280:], labels[1280:]), 517) if checked else None)
    return model


def rates(monitor: llr.LRMonitor, end: int, group: str = "", start: int = 0) -> tuple[list[int], list[float]]:
    """Steps and effective rates of a param group, from its first update to the run's end."""
    changes = [change for change in monitor.changes if change.group == group]
    first = changes[0].old if changes else next(iter(monitor.rates.values()))
    points = [(start, first), *((change.step, change.new) for change in changes)]
    points.append((end, points[-1][1]))
    return [step for step, _ in points], [rate for _, rate in points]


def compose() -> Figure:
    """A schedule, a warm-up and decays on plateaus, all at once."""
    monitor, plateau = llr.LRMonitor(), llr.PlateauDecay("val_loss", factor=0.5, patience=3)
    train(Digits(0.1, cosine=25 * UPDATES), llr.Warmup(epochs=2), plateau, monitor, epochs=25)
    return monitor.plot()


def warmup() -> Figure:
    """The shapes, and a group that is unfrozen in mid-run."""
    figure = Figure(figsize=(8.4, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, shape in enumerate(("linear", "cosine", "exponential")):
        monitor = llr.LRMonitor()
        train(Digits(RATE), llr.Warmup(steps=50, shape=shape), monitor, epochs=3)  # pyright: ignore
        steps, values = rates(monitor, 3 * UPDATES)
        left.step(steps, [v / RATE for v in values], where="post", color=f"C{number}", label=f'"{shape}"')
    monitor = llr.LRMonitor()
    train(Digits(RATE), llr.Warmup(steps=50, shape="constant", start_factor=0.1), monitor, epochs=3)
    steps, values = rates(monitor, 3 * UPDATES)
    left.step(steps, [v / RATE for v in values], "C3--", where="post", label='"constant", start_factor=0.1')
    left.set(xlabel="update", ylabel="factor", title="Warmup(steps=50, shape=...)")
    monitor = llr.LRMonitor()
    train(Digits(RATE, frozen=3), llr.Warmup(steps=50), monitor, epochs=6)
    for group, start in {"head": 0, "backbone": 3 * UPDATES}.items():
        right.step(*rates(monitor, 6 * UPDATES, group, start), where="post", label=group)
    right.set(xlabel="update", ylabel="effective rate", title="a group that is unfrozen later")
    for axes in (left, right):
        axes.title.set_fontsize(10)
        axes.legend(fontsize=8, loc="lower right")
    return figure


def cooldown() -> Figure:
    """The shapes behind a warm-up, and a fall that a stop begins."""
    figure = Figure(figsize=(8.4, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for number, shape in enumerate(("linear", "1-sqrt", "cosine")):
        monitor, fall = llr.LRMonitor(), llr.Cooldown(fraction=0.3, shape=shape)  # pyright: ignore
        train(Digits(RATE), llr.Warmup(steps=20), fall, monitor, epochs=5)
        left.step(*rates(monitor, 5 * UPDATES), where="post", color=f"C{number}", label=f'"{shape}"')
    left.set(xlabel="update", ylabel="effective rate", title="Warmup(20), Cooldown(fraction=0.3, shape=...)")
    left.set_ylim(0.0, 1.5 * RATE)
    left.legend(fontsize=8, loc="upper center")
    monitor, stop = llr.LRMonitor(), EarlyStopping("val_loss", patience=2)
    model = train(Digits(RATE), llr.Cooldown(epochs=2, on_stop=True), stop, monitor, epochs=60)
    end = len(model.losses)
    right.step(*rates(monitor, end), where="post", color="C0", label="effective rate")
    right.axvline(
        (stop.stopped_epoch + 1) * UPDATES, color="0.5", linestyle=":", label="EarlyStopping asks for the end"
    )
    right.set(xlabel="update", title="Cooldown(epochs=2, on_stop=True)")
    losses = right.twinx()
    losses.plot(*zip(*model.checks, strict=True), "C1.-", linewidth=0.8, label="val_loss (right)")
    losses.set_yscale("log")
    for axes in (left, right):
        axes.title.set_fontsize(10)
    handles = [
        one + other for one, other in zip(*(a.get_legend_handles_labels() for a in (right, losses)), strict=True)
    ]
    right.legend(*handles, fontsize=8, loc="upper right")
    return figure


def plateau() -> Figure:
    """What a metric does, and where the rate falls."""
    monitor = llr.LRMonitor()
    model = train(Digits(0.1), llr.PlateauDecay("val_loss", factor=0.3, patience=2), monitor, epochs=20)
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(2, 1))
    policy = llr.PlateauPolicy(patience=2)
    state, signs = llr.PlateauState(), []
    for _, loss in model.checks:
        best = state.best
        state, decays = policy.step(state, loss)
        signs.append("decay" if decays else "bad" if state.best == best else "better")
    above.plot(*zip(*model.checks, strict=True), color="0.6", linewidth=0.8, zorder=0)
    kinds = {
        "better": ("o", "C0", "better: the new best"),
        "bad": ("o", "C1", "a bad check"),
        "decay": ("v", "C3", "one bad check too many: the rate falls"),
    }
    for kind, (sign, colour, label) in kinds.items():
        points = [point for point, own in zip(model.checks, signs, strict=True) if own == kind]
        above.plot(*zip(*points, strict=True), sign, color=colour, label=label)
    above.set(yscale="log", ylabel="val_loss")
    above.legend(fontsize=8)
    below.step(*rates(monitor, len(model.losses)), where="post")
    below.set(yscale="log", xlabel="update", ylabel="effective rate")
    return figure


def monitored() -> Figure:
    """What `monitor.plot()` draws of a run that needed its guard."""
    monitor = llr.LRMonitor()
    model = Digits(RATE * TIMES, cosine=15 * UPDATES)
    train(
        model, llr.Warmup(steps=50), llr.Cooldown(fraction=0.2), llr.DivergenceGuard(), Faults(), monitor, checked=False
    )
    return monitor.plot()


def ratios() -> Figure:
    """The size of an update by that of the weights, at three rates."""
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    axes = figure.subplots()
    for rate in (1e-4, 1e-3, 1e-2):
        kept = Kept()
        train(Digits(rate, adam=True), llr.LRMonitor(update_ratio=True), llr.Warmup(steps=50), epochs=8, logger=kept)
        axes.plot(*zip(*kept.points["lr-update/all"], strict=True), label=f"AdamW at {rate:g}")
    axes.axhline(1e-3, color="0.5", linestyle=":", label="usual, by a rough rule")
    axes.set(yscale="log", xlabel="update", ylabel="lr-update/all")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def autopilot() -> Figure:
    """The same net from four initial rates, with and without."""
    figure = Figure(figsize=(8.4, 4.4), layout="constrained")
    (bare, flown), (above, below) = figure.subplots(2, 2, sharex=True, sharey="row")
    for number, rate in enumerate((1e-6, 1e-3, 1.0, 100.0)):
        style: dict[str, Any] = {"color": f"C{number}", "label": f"initial rate {rate:g}"}
        for axes, factors, callbacks in (
            (bare, above, []),
            (flown, below, llr.autopilot(finder={"progress_bar": False})),
        ):
            monitor = callbacks[-1] if callbacks else llr.LRMonitor()
            model = train(Digits(rate, adam=True), *(callbacks or [monitor]), epochs=20)
            axes.plot(*zip(*model.checks, strict=True), ".-", markersize=3, linewidth=0.9, **style)
            start = callbacks[0].result.step + 1 if callbacks else 0
            factors.step(*rates(monitor, 20 * UPDATES, start=start), where="post", linewidth=1.2, **style)
    bare.set(yscale="log", ylim=(0.04, 20.0), ylabel="val_loss", title="AdamW")
    flown.set(title='the same with autopilot("val_loss")')
    above.set(yscale="log", ylabel="effective rate", xlabel="update")
    below.set(xlabel="update")
    flown.legend(fontsize=8)
    return figure


def rescue() -> Figure:
    """The losses of one run without and with the guard, and its rate."""
    monitor, model = llr.LRMonitor(), partial(Digits, RATE * TIMES, cosine=15 * UPDATES)
    bare, guarded = (
        train(model(), *callbacks, checked=False)
        for callbacks in ([Faults()], [llr.DivergenceGuard(), monitor, Faults()])
    )
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    above.plot(bare.losses, color="C3", linewidth=0.8, label="without the guard")
    above.plot(guarded.losses, color="C0", linewidth=0.8, label="with DivergenceGuard()")
    above.set(yscale="log", ylabel="training loss", ylim=(1e-2, 30.0))
    above.axvline(NAN_AT, color="0.6", linestyle=":", label="a batch of NaN")
    above.axvline(BROKEN_AT, color="0.6", linestyle="--", label="weights break")
    above.legend(fontsize=8, loc="lower left")
    below.step(*rates(monitor, 15 * UPDATES), where="post", color="C0", linewidth=1.2)
    below.set(yscale="log", xlabel="update", ylabel="effective rate")
    return figure


def sweep() -> Figure:
    """What a sweep has found on the same net."""
    finder = llr.LRFinder(progress_bar=False)
    train(Digits(RATE, cosine=15 * UPDATES), finder, checked=False)
    return finder.plot()


FIGURES: dict[str, Callable[[], Figure]] = {
    "autopilot": autopilot,
    "compose": compose,
    "cooldown": cooldown,
    "finder-sweep": sweep,
    "guard-rescue": rescue,
    "monitor": monitored,
    "monitor-ratios": ratios,
    "plateau": plateau,
    "warmup": warmup,
}


def main() -> None:
    for name in ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*(does not have many workers|have no `val_dataloader`).*")
    warnings.filterwarnings("ignore", ".*(LeafSpec|all_gather).*is deprecated.*")
    torch.set_num_threads(1)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:] or FIGURES:
        FIGURES[name]().savefig(folder / f"{name}.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
