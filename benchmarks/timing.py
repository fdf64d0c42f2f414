"""Timing: fits of a small net with different callbacks, in turn, alone or on two processes joined by gloo."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import socket
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

Arms = Mapping[str, Callable[[], list[Any]]]
Times = dict[str, list[tuple[float, float]]]


class Net(pl.LightningModule):
    """An MLP of `width` units and `depth` hidden layers; `optimize` gives what `configure_optimizers` gives."""

    def __init__(self, width: int, depth: int, optimize: Callable[[Any], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Linear(64, width), nn.ReLU()]
        for _ in range(depth):
            layers += [nn.Linear(width, width), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Linear(width, 10))
        self.optimize = optimize

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return self.optimize(self.parameters())


class Clock(pl.Callback):
    """Looks at both clocks, (wall, CPU) in seconds, every so many batches.

    A block is long enough to have its share of what comes now and then (a copy of the weights, a logging step). Of all
    blocks the fastest counts: the least disturbed by whatever else the machine does.
    """

    def __init__(self, block: int) -> None:
        self.block, self.seen = block, []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % self.block == 0:
            self.seen.append((time.perf_counter(), time.process_time()))

    def spent(self) -> tuple[float, float]:
        """Microseconds per batch, without the first block."""
        blocks = list(itertools.pairwise(self.seen))[1:]
        wall, cpu = (min(b[i] - a[i] for a, b in blocks) / self.block * 1e6 for i in (0, 1))
        return wall, cpu


def spend(callbacks: list[Any], net: pl.LightningModule, batch: int, updates: int, **more: Any) -> tuple[float, float]:
    """Microseconds per update of one fit, (wall, CPU); `more`: of the trainer's arguments."""
    torch.manual_seed(1)
    data = TensorDataset(torch.randn(batch, 64), torch.randint(10, (batch,)))
    ranks = more.get("devices", 1)
    loader = DataLoader(ConcatDataset([data] * updates * ranks), batch_size=batch)
    held_out = DataLoader(data, batch_size=batch)
    clock = Clock(max(updates // 12, 1))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, clock],
        **{"logger": False, **more},
    )
    trainer.fit(net, loader, held_out)
    return clock.spent()


def in_turn(arms: Arms, fit: Callable[[list[Any]], tuple[float, float]], reps: int) -> Times:
    """The times of every arm, in a rotated order at each repetition, after one that warms up."""
    names = list(arms)
    times: Times = {name: [] for name in names}
    for rep in range(reps + 1):
        for name in names[rep % len(names) :] + names[: rep % len(names)]:
            spent = fit(arms[name]())
            if rep > 0:
                times[name].append(spent)
    return times


def table(times: Times, against: str = "bare") -> str:
    """Of each arm the median of the differences to one arm in the same repetition, and of the ratios."""
    base, lines = times[against], []
    wall, cpu = (statistics.median(one[clock] for one in base) for clock in (0, 1))
    lines.append(f"  {against}: {wall:.0f} us wall, {cpu:.0f} us CPU per update")
    for name in times:
        row = []
        for clock in (0, 1) if name != against else ():
            more = [a[clock] - b[clock] for a, b in zip(times[name], base, strict=True)]
            ratio = [a[clock] / b[clock] for a, b in zip(times[name], base, strict=True)]
            row.append(f"{statistics.median(more):+7.0f} us ({statistics.median(ratio):.3f})")
        if row:
            lines.append(f"  {name:36s} wall {row[0]}   CPU {row[1]}")
    return "\n".join(lines)


def quiet() -> None:
    """One thread, and no words of Lightning's."""
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning_fabric", "lightning_utilities", "lightning_utilities.core.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)


def on_ranks(ranks: int, function: Callable[..., Any], *args: Any) -> Any:
    """What a module's function gives on rank zero of so many processes joined by gloo."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    answer = context.SimpleQueue()
    processes = [
        context.Process(target=_serve, args=(rank, ranks, port, answer, function, args)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    found = answer.get()
    for process in processes:
        process.join()
    return found


def _serve(rank: int, ranks: int, port: int, answer: Any, function: Callable[..., Any], args: Any) -> None:
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "GROUP_RANK": 0}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "timing"}
    os.environ.update({name: str(value) for name, value in (places | address).items()})
    quiet()
    found = function(*args)
    if rank == 0:
        answer.put(found)
