"""How well `DivergenceGuard` rescues runs, how soon it sees a fault, and how seldom it is wrong.

Three tables: *recovery* (faults in mid-run, in the data, the numbers, the weights and the rate, both in the optimizer's
rate and in the one that the user's scheduler sets), *quiet* (healthy runs under five schedules) and *rates* (initial
rates 10, 100 and 1,000 times too high). A run has recovered when its final validation loss is within 10% of the clean
run's gain from the clean run's, after as many batches. *Found* are those of the runs harmed by it without a guard in
which the guard dropped an update, or a trial blamed the data or the weights; the delay is that of the first such
verdict. A limited gradient doesn't count as found. The tasks took part in setting thresholds, the seeds did not.

    python benchmarks/divergence.py results.jsonl            # about an hour on one core; goes on where it was stopped
    python benchmarks/divergence.py results.jsonl --quick    # one seed of two tasks: a few minutes
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import math
import statistics
import struct
import time
import warnings
from pathlib import Path
from typing import Any

import printed
import pytorch_lightning as pl
import torch
from printed import head, row
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from lightning_lr.callbacks.divergence import DivergenceError, DivergenceGuard
from lightning_lr.policies.verdict import Verdict

UPDATES, FAULT_AT, BATCH = 600, 200, 32
FAULTS = [
    "rate x30, 5 updates",
    "rate x300, 5 updates",
    "rate x30",
    "rate x300",
    "rate +2% an update",
    "10 batches of shuffled labels",
    "10 batches of inputs x1e6",
    "a batch of NaN",
    "NaN in a gradient",
    "inf in a gradient",
    "loss x1e6",
    "a flipped bit in a weight",
    "three faults in a row",
]
SCHEDULES = ["constant", "cosine", "warm restarts", "cyclic", "warm-up"]


@functools.cache
def noisy(regression: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A teacher's data: labels of which 20% are wrong, or targets with Student-t(3) noise."""
    made = torch.Generator().manual_seed(11)
    x = torch.randn(6000, 20, generator=made)
    hidden = torch.tanh(2 * x @ torch.randn(20, 32, generator=made) / 20**0.5)
    out = hidden @ torch.randn(32, 10, generator=made) / 32**0.5 * 3
    if regression:
        chi = torch.randn(6000, 3, generator=made).square().sum(1)
        clean = out[:, :1]
        y = clean + (torch.randn(6000, generator=made) / (chi / 3).sqrt())[:, None]
        return x[:5000], y[:5000], x[5000:], clean[5000:]
    wrong = torch.rand(6000, generator=made) < 0.2
    y = torch.where(wrong, torch.randint(0, 10, (6000,), generator=made), out.argmax(1))
    return x[:5000], y[:5000], x[5000:], y[5000:]


@functools.cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bunch: Any = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(3))
    x, y = torch.tensor(bunch.images, dtype=torch.float32)[order] / 16, torch.tensor(bunch.target)[order]
    return x[:1280], y[:1280], x[1280:], y[1280:]


def mlp(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs))


def cnn() -> nn.Module:
    body = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()]
    head = [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)]
    return nn.Sequential(nn.Unflatten(1, (1, 8)), *body, *head)


def batchnorm() -> nn.Module:
    def layer(width: int) -> list[nn.Module]:
        return [nn.Linear(width, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Dropout(0.3)]

    return nn.Sequential(nn.Flatten(), *layer(64), *layer(96), nn.Linear(96, 10))


def autoencoder() -> nn.Module:
    down = [nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8)]
    return nn.Sequential(*down, nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Unflatten(1, (8, 8)))


def copied(data: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return data[0], data[0], data[2], data[2]


SGD = functools.partial(torch.optim.SGD, momentum=0.9)
TASKS: dict[str, Any] = {
    "noisy labels, SGD": (lambda: noisy(False), lambda: mlp(10), functional.cross_entropy, SGD, 0.02),
    "noisy labels, AdamW": (lambda: noisy(False), lambda: mlp(10), functional.cross_entropy, torch.optim.AdamW, 3e-3),
    "heavy tails, AdamW": (lambda: noisy(True), lambda: mlp(1), functional.mse_loss, torch.optim.AdamW, 3e-3),
    "digits, SGD": (digits, cnn, functional.cross_entropy, SGD, 0.03),
    "digits, AdamW": (digits, cnn, functional.cross_entropy, torch.optim.AdamW, 2e-3),
    "batchnorm, RMSprop": (digits, batchnorm, functional.cross_entropy, torch.optim.RMSprop, 1e-3),
    "autoencoder, AdamW": (lambda: copied(digits()), autoencoder, functional.mse_loss, torch.optim.AdamW, 2e-3),
}
QUICK = ["digits, SGD", "batchnorm, RMSprop"]


class Run(pl.LightningModule):
    """One task with one fault.

    Args:
        task: its name.
        seed: of weights, data order and place of the fault.
        fault: its name; None: none.
        times: of the task's rate.
        schedule: its name.
        own_rate: whether a rate fault rewrites the optimizer's rate, instead of the scheduler's.
    """

    def __init__(self, task: str, seed: int, fault: str | None, times: float, schedule: str, own_rate: bool) -> None:
        super().__init__()
        torch.manual_seed(seed)
        data, net, self.loss, self.optimizer, rate = TASKS[task]
        self.net, self.data, self.rate = net(), data(), rate * times
        self.fault, self.schedule, self.own_rate = fault or "", schedule, own_rate
        self.at = FAULT_AT + seed * 13 % 40
        self.draw = torch.Generator().manual_seed(seed)
        self.count = 0

    def since(self) -> int:
        return self.count - self.at

    def raised(self, update: int) -> float:
        """By how much a fault multiplies the rate."""
        d = update - self.at
        if d < 0 or not self.fault.startswith("rate"):
            return 1.0
        if "+2%" in self.fault:
            return 1.02**d
        return (300.0 if "x300" in self.fault else 30.0) if d < 5 or "5 updates" not in self.fault else 1.0

    def scheduled(self, update: int) -> float:
        k = update
        if self.schedule == "cosine":
            return (1 + math.cos(math.pi * k / UPDATES)) / 2
        if self.schedule == "warm restarts":
            return (1 + math.cos(math.pi * (k % 150) / 150)) / 2 + 1e-4
        if self.schedule == "cyclic":
            return 0.1 + 0.9 * (1 - abs(2 * (k % 100) / 100 - 1))
        return min(1.0, (k + 1) / 60) if self.schedule == "warm-up" else 1.0

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.net.parameters(), lr=self.rate)
        if self.own_rate:
            return optimizer
        factor = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: self.scheduled(k) * self.raised(k))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": factor, "interval": "step"}}

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(range(UPDATES))  # pyright: ignore[reportArgumentType]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.count = batch_idx
        if self.own_rate:
            self.trainer.optimizers[0].param_groups[0]["lr"] = self.rate * self.raised(batch_idx)
        if self.fault == "a flipped bit in a weight" and self.since() == 0:
            weight = max((p for p in self.net.parameters()), key=lambda p: p.numel()).data.view(-1)
            place = int(torch.randint(len(weight), (1,), generator=self.draw))
            bits = struct.unpack("I", struct.pack("f", float(weight[place])))[0] ^ (1 << 30)
            weight[place] = struct.unpack("f", struct.pack("I", bits))[0]

    def training_step(self, batch: Any) -> Tensor:
        x, y, *_ = self.data
        chosen = torch.randint(len(x), (BATCH,), generator=self.draw)
        x, y, d = x[chosen], y[chosen], self.since()
        if "shuffled" in self.fault and 0 <= d < 10:
            y = y[torch.randperm(BATCH, generator=self.draw)]
        if "inputs" in self.fault and 0 <= d < 10:
            x = x * 1e6
        if self.fault == "a batch of NaN" and d == 0:
            x = x * math.nan
        loss = self.loss(self.net(x), y)
        if (self.fault == "loss x1e6" and d == 0) or (self.fault.startswith("three") and d in (0, 30, 60)):
            loss = loss * (1e6 if d < 60 else math.nan)
        return loss

    def on_after_backward(self) -> None:
        if self.fault.endswith("in a gradient") and self.since() == 0:
            grad = next(self.net.parameters()).grad
            assert grad is not None
            grad.view(-1)[0] = math.nan if "NaN" in self.fault else math.inf

    @torch.no_grad()
    def validate_now(self) -> float:
        self.net.eval()
        value = float(self.loss(self.net(self.data[2]), self.data[3]))
        self.net.train()
        return value


class Watched(DivergenceGuard):
    """Notes at which updates it dropped one, or a trial found something."""

    def reset(self) -> None:
        super().reset()
        self.found: list[int] = []
        tell = self.record.tell

        def told(run: Any, index: int, update: int, measured: Any, signals: Any, verdict: Verdict, *more: Any) -> None:
            if verdict.kind in ("drop", "rewind", "give_up") or verdict.outcome == "data":
                self.found.append(update - 1)
            tell(run, index, update, measured, signals, verdict, *more)

        self.record.tell = told  # type: ignore[method-assign]


def run(guarded: bool, **what: Any) -> dict[str, Any]:
    model = Run(**what)
    start = model.validate_now()
    guard = Watched(snapshot_every=10)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[guard] if guarded else [],
    )  # fmt: skip
    began = time.perf_counter()
    with contextlib.suppress(DivergenceError):
        trainer.fit(model)
    return {
        "start": start, "end": model.validate_now(), "at": model.at, "first": guard.found[:1],
        "guard": guard.summary(), "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


class Results:
    """Outcomes by what was run, kept in a file of one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.known = {line["key"]: line for line in map(json.loads, lines)}

    def get(self, guarded: bool, task: str, seed: int, **more: Any) -> dict[str, Any]:
        what = {
            "fault": None,
            "times": 1.0,
            "schedule": "constant",
            "own_rate": False,
            **more,
            "task": task,
            "seed": seed,
        }
        key = json.dumps(["trials" if guarded else False, what], sort_keys=True)
        if key not in self.known:
            self.known[key] = {"key": key, **run(guarded, **what)}
            with self.path.open("a") as file:
                file.write(json.dumps(self.known[key]) + "\n")
        return self.known[key]

    def score(self, guarded: bool, task: str, seed: int, **more: Any) -> float:
        """The loss that is missing to the clean run's, as a share of that run's gain."""
        clean, found = self.get(False, task, seed), self.get(guarded, task, seed, **more)
        share = (found["end"] - clean["end"]) / (clean["start"] - clean["end"])
        return share if math.isfinite(share) else math.inf


def tables(results: Results, tasks: list[str], seeds: list[int]) -> None:
    pairs = [(task, seed) for task in tasks for seed in seeds]
    title = "Recovery: runs within 10% of the clean run's gain"
    head("recovery", title, "fault", "stock", "guard", "found", "median delay")
    total = [0, 0, 0]
    for fault in FAULTS:
        ways = [False, True] if fault.startswith("rate") else [False]
        cases = [(t, s, {"fault": fault, "own_rate": way}) for t, s in pairs for way in ways]
        stock = [results.score(False, t, s, **more) for t, s, more in cases]
        saved = [results.score(True, t, s, **more) for t, s, more in cases]
        harmed = [results.get(True, t, s, **m) for (t, s, m), score in zip(cases, stock, strict=True) if score > 0.1]
        delays = [r["first"][0] - r["at"] for r in harmed if r["first"]]
        delay = f"{statistics.median(delays):g}" if delays else "-"
        counts = sum(x <= 0.1 for x in stock), sum(x <= 0.1 for x in saved), len(cases)
        total = [a + b for a, b in zip(total, counts, strict=True)]
        shares = [f"{count}/{counts[2]}" for count in counts[:2]]
        row(fault, *shares, f"{len(delays)}/{len(harmed)}", delay)
    row("all", *(f"{count}/{total[2]}" for count in total[:2]), "", "")
    head("quiet", "Quiet: healthy runs", "schedule", "runs", "touched", "dropped + held", "limited", "rewinds")
    for schedule in SCHEDULES:
        found = [results.get(True, t, s, schedule=schedule)["guard"] for t, s in pairs]
        gone, limited = sum(g["dropped"] + g["held"] for g in found), sum(g["limited"] for g in found)
        touched = sum(any(g[name] for name in ("dropped", "held", "limited", "rewinds")) for g in found)
        rewinds = sum(g["rewinds"] for g in found)
        row(schedule, len(found), touched, gone, limited, rewinds)
    head("rates", "Rates: runs within 10% of the tuned run's gain", "initial rate", "stock", "guard")
    for times in (10.0, 100.0, 1000.0):
        stock, saved = ([results.score(g, t, s, times=times) for t, s in pairs] for g in (False, True))
        row(f"x{times:g}", *(f"{sum(x <= 0.1 for x in column)}/{len(column)}" for column in (stock, saved)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="file of outcomes, made or gone on with")
    parser.add_argument("--quick", action="store_true", help="one seed of two tasks")
    parser.add_argument("--seeds", type=int, nargs="+", default=[71, 72])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    printed.add_argument(parser)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_utilities.core.rank_zero", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    tables(Results(args.results), QUICK if args.quick else args.tasks, args.seeds[:1] if args.quick else args.seeds)
    printed.write(parser, args, made=args.results)


if __name__ == "__main__":
    main()
