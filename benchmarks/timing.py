"""Timing: fits of a small net with different callbacks, in turn, alone or on two processes joined by gloo."""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import statistics
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import printed
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


class Turns:
    """Lets fits in threads of their own go on in turn, one at a time: each has the machine as the others have it."""

    def __init__(self, number: int) -> None:
        self._order, self._waits = list(range(number)), threading.Condition()

    def wait(self, which: int) -> None:
        with self._waits:
            self._waits.wait_for(lambda: self._order[0] == which)

    def pass_on(self, which: int, *, over: bool = False) -> None:
        with self._waits:
            self._order = self._order[1:] + ([] if over else [which])
            self._waits.notify_all()


class Clock(pl.Callback):
    """Times blocks of batches, (wall, CPU) in seconds, and lets the others run between them.

    A block is long enough to have its share of what comes now and then (a copy of the weights, a logging step).
    """

    def __init__(self, block: int, turns: Turns, which: int) -> None:
        self.block, self.turns, self.which = block, turns, which
        self.blocks: list[tuple[float, float]] = []
        self._start: tuple[float, float] | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % self.block:
            return
        now = time.perf_counter(), time.process_time()
        if self._start is not None:
            self.blocks.append((now[0] - self._start[0], now[1] - self._start[1]))
        self.turns.pass_on(self.which)
        self.turns.wait(self.which)
        self._start = time.perf_counter(), time.process_time()

    def spent(self) -> list[tuple[float, float]]:
        """Microseconds per batch of each block but the first, (wall, CPU)."""
        return [(wall / self.block * 1e6, cpu / self.block * 1e6) for wall, cpu in self.blocks[1:]]


def fit(
    callbacks: list[Any], clock: Clock, net: pl.LightningModule, batch: int, updates: int, **more: Any
) -> list[tuple[float, float]]:
    """Microseconds per update of one fit, by blocks; `more`: of the trainer's arguments."""
    data = TensorDataset(torch.randn(batch, 64), torch.randint(10, (batch,)))
    ranks = more.get("devices", 1)
    loader = DataLoader(ConcatDataset([data] * updates * ranks), batch_size=batch)
    held_out = DataLoader(data, batch_size=batch)
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


def in_turn(arms: Arms, run: Callable[[list[Any], Clock], list[tuple[float, float]]], block: int, fits: int) -> Times:
    """The times of every arm: in each of so many fits they run side by side, a block of updates each in turn."""
    times: Times = {name: [] for name in arms}
    errors: list[BaseException] = []

    def go(name: str, which: int, turns: Turns) -> None:
        turns.wait(which)
        try:
            times[name] += run(arms[name](), Clock(block, turns, which))
        except BaseException as error:
            errors.append(error)
        turns.pass_on(which, over=True)

    for _ in range(fits):
        turns = Turns(len(arms))
        threads = [threading.Thread(target=go, args=(name, i, turns)) for i, name in enumerate(arms)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
    return times


LOOKS: dict[str, Callable[[list[tuple[float, float]]], float]] = {
    "wall": lambda blocks: statistics.median(wall for wall, _ in blocks),
    "CPU": lambda blocks: statistics.median(cpu for _, cpu in blocks),
    "CPU, fastest tenth": lambda blocks: statistics.quantiles([cpu for _, cpu in blocks], n=10)[0],
}


def table(name: str, times: Times, against: str = "bare") -> str:
    """Of each arm the median block against that of one arm; of CPU time the fastest tenth too, the least disturbed.

    Args:
        name: under which it is kept for JSON.
        times: of each arm.
        against: which arm.
    """
    base = {what: look(times[against]) for what, look in LOOKS.items()}
    lines = [f"  {against:34s} " + "   ".join(f"{what} {base[what]:.0f} us" for what in LOOKS)]
    kept: list[list[object]] = [[against, *(cell for what in LOOKS for cell in (round(base[what]), "", ""))]]
    for arm in [arm for arm in times if arm != against]:
        spent = {what: look(times[arm]) for what, look in LOOKS.items()}
        cells = {w: (f"{spent[w] - base[w]:+.0f}", f"{spent[w] / base[w]:.3f}") for w in LOOKS}
        lines.append(f"  {arm:34s} " + "   ".join(f"{w} {more:>6s} us ({ratio})" for w, (more, ratio) in cells.items()))
        kept.append([arm, *(cell for w in LOOKS for cell in (round(spent[w]), *cells[w]))])
    columns = [f"{what}: {part}" for what in LOOKS for part in ("us", "more, us", "ratio")]
    printed.keep(name, ["arm", *columns], kept)
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
