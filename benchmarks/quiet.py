"""How seldom `DivergenceGuard` touches a run that learns, where that is hardest to tell: small nets, small batches.

For every case (task, net, batch, optimizer, seed) plain training at thirteen rates, two a decade, finds the best one.
Guarded runs follow at a tenth and a third of it, at it, and at 3, 10 and 100 times it. Two tables: *quiet*, by task,
counts the runs at no more than the best rate that were touched, and those that were ruined by it; *too high* counts
the runs that end within 10% of the best run's gain from its loss, and those that the guard made worse than plain
training by more than that. Touched is a run of which an update was dropped, held for a trial, limited, or rewound; any
other must end at the plain run's very loss, bit for bit, or it counts as ruined.

    python benchmarks/quiet.py results.jsonl            # about an hour on one core; goes on where it was stopped
    python benchmarks/quiet.py results.jsonl --quick    # one net of two tasks: a few minutes
    python benchmarks/quiet.py results.jsonl --tasks digits --batches 1 2 --updates 600 --verbose
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import printed
import pytorch_lightning as pl
import torch
from finder_tasks import text
from printed import head, row
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

import lightning_lr as llr

RATES = [10 ** (k / 2) for k in range(-8, 5)]
TIMES = {"a tenth": -2, "a third": -1, "best": 0, "x3": 1, "x10": 2, "x100": 4}
"""Multiples of the best rate, by places in `RATES`."""

NETS = ["linear", "8", "16", "64", "16-16"]
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD,
    "momentum": functools.partial(torch.optim.SGD, momentum=0.9),
    "AdamW": torch.optim.AdamW,
}


class Data(NamedTuple):
    inputs: Tensor
    targets: Tensor
    held_inputs: Tensor
    held_targets: Tensor


def split(inputs: Any, targets: Any) -> Data:
    """A random quarter is held out; inputs and real targets are standardised."""
    inputs = (inputs - inputs.mean(0)) / (inputs.std(0) + 1e-8)
    if targets.dtype.kind == "f":
        targets = ((targets - targets.mean()) / targets.std())[:, None].astype("float32")
    order, held = np.random.RandomState(0).permutation(len(inputs)), len(inputs) // 4
    x, y = torch.tensor(inputs, dtype=torch.float32)[order], torch.tensor(targets)[order]
    return Data(x[held:], y[held:], x[:held], y[:held])


def digits(wrong: float = 0.0) -> Data:
    bunch: Any = datasets.load_digits()
    x = torch.tensor(bunch.data[:1024] / 16, dtype=torch.float32)
    y = torch.tensor(bunch.target[:1024])
    labels, made = y[:768].clone(), torch.Generator().manual_seed(5)
    random = torch.rand(768, generator=made) < wrong
    labels[random] = torch.randint(10, (int(random.sum()),), generator=made)
    return Data(x[:768], labels, x[768:], y[768:])


def letters() -> Data:
    """The next byte of the standard library's sources, from the four before it, one-hot."""
    values = text().inputs[:40000]
    x = functional.one_hot(values.unfold(0, 4, 1)[:-1], 128).float().flatten(1)
    return Data(x[:-2000:2], values[4:-2000:2], x[-2000:], values[-2000:])


class Task(NamedTuple):
    data: Callable[[], Data]
    outputs: int


TASKS = {
    "digits": Task(digits, 10),
    "noisy digits": Task(lambda: digits(0.3), 10),
    "noise, mostly": Task(lambda: digits(0.8), 10),
    "wine": Task(lambda: split(*datasets.load_wine(return_X_y=True)), 3),
    "breast cancer": Task(lambda: split(*datasets.load_breast_cancer(return_X_y=True)), 2),
    "diabetes": Task(lambda: split(*datasets.load_diabetes(return_X_y=True)), 1),
    "friedman": Task(lambda: split(*datasets.make_friedman1(1200, noise=1.0, random_state=1)), 1),
    "letters": Task(letters, 128),
}
QUICK = ["digits", "wine"]


class Case(NamedTuple):
    """What is trained, but for the rate."""

    task: str
    net: str
    batch: int
    optimizer: str
    seed: int
    updates: int


@functools.cache
def data_of(task: str) -> Data:
    return TASKS[task].data()


class Run(pl.LightningModule):
    """A net of hidden layers as wide as `case.net` says."""

    def __init__(self, case: Case, rate: float) -> None:
        super().__init__()
        torch.manual_seed(case.seed)
        self.case, self.rate, self.data = case, rate, data_of(case.task)
        outputs, width = TASKS[case.task].outputs, self.data.inputs.shape[1]
        layers: list[nn.Module] = []
        for hidden in [] if case.net == "linear" else map(int, case.net.split("-")):
            layers += [nn.Linear(width, hidden), nn.ReLU()]
            width = hidden
        self.net = nn.Sequential(*layers, nn.Linear(width, outputs))
        self.loss = functional.mse_loss if outputs == 1 else functional.cross_entropy

    def batches(self) -> Iterator[list[Tensor]]:
        draw = torch.Generator().manual_seed(self.case.seed + 3)
        for _ in range(self.case.updates):
            chosen = torch.randint(len(self.data.inputs), (self.case.batch,), generator=draw)
            yield [self.data.inputs[chosen], self.data.targets[chosen]]

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return self.loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return OPTIMIZERS[self.case.optimizer](self.parameters(), lr=self.rate)

    @torch.no_grad()
    def held_out_loss(self) -> float:
        loss = float(self.loss(self.net(self.data.held_inputs), self.data.held_targets))
        return loss if math.isfinite(loss) else math.inf


def plain(case: Case, rate: float) -> tuple[float, float]:
    """The held-out losses at the start and at the end."""
    run = Run(case, rate)
    start, optimizer = run.held_out_loss(), run.configure_optimizers()
    for batch in run.batches():
        optimizer.zero_grad()
        run.training_step(batch).backward()
        optimizer.step()
    return start, run.held_out_loss()


TOUCHES = ["dropped", "held", "limited", "rewinds"]


def guarded(case: Case, rate: float, folder: str) -> tuple[float, ...]:
    """The held-out loss at the end, infinite where the guard gave up; and `TOUCHES`."""
    run, guard = Run(case, rate), llr.DivergenceGuard(snapshot_every=10)

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return run.batches()

    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[guard],
    )  # fmt: skip
    try:
        trainer.fit(run, DataLoader(Stream(), batch_size=None))
    except llr.DivergenceError:
        return math.inf, *touches(guard)
    return run.held_out_loss(), *touches(guard)


def touches(guard: llr.DivergenceGuard) -> list[float]:
    found = guard.summary()
    return [found[name] for name in TOUCHES]


class Results:
    """Outcomes by what was run, kept in a file of one JSON list a line."""

    def __init__(self, path: Path, folder: str) -> None:
        self.path, self.folder = path, folder
        lines = path.read_text().splitlines() if path.exists() else []
        self.known: dict[str, list[float]] = dict(map(json.loads, lines))

    def _get(self, key: str, run: Callable[[], tuple[float, ...]]) -> list[float]:
        if key not in self.known:
            self.known[key] = list(run())
            with self.path.open("a") as file:
                file.write(json.dumps([key, self.known[key]]) + "\n")
        return self.known[key]

    def plain(self, case: Case, rate: float) -> list[float]:
        return self._get(f"plain {[*case, rate]}", lambda: plain(case, rate))

    def guarded(self, case: Case, rate: float) -> list[float]:
        return self._get(f"trials {[*case, rate]}", lambda: guarded(case, rate, self.folder))


class Outcome(NamedTuple):
    """Losses beyond the best run's, as shares of its gain."""

    case: Case
    times: str
    plain: float
    guard: float
    touches: list[int]

    @property
    def ruined(self) -> bool:
        return self.guard - self.plain > 0.1 or (not any(self.touches) and self.guard != self.plain)


def outcomes(results: Results, case: Case) -> Iterator[Outcome]:
    ends = [results.plain(case, rate) for rate in RATES]
    place = min(range(len(RATES)), key=lambda k: ends[k][1])
    start, best = ends[place]
    for name, further in TIMES.items():
        if 0 <= place + further < len(RATES):
            end, *touched = results.guarded(case, RATES[place + further])
            stock, saved = ((loss - best) / (start - best) for loss in (ends[place + further][1], end))
            yield Outcome(case, name, stock, saved, [int(number) for number in touched])


def tables(found: list[Outcome]) -> None:
    head("quiet", "Quiet: runs at no more than their best rate", "task", "runs", "touched", *TOUCHES, "ruined")
    healthy = [o for o in found if TIMES[o.times] <= 0]
    for task in [*dict.fromkeys(o.case.task for o in healthy), "all"]:
        rows = [o for o in healthy if task in (o.case.task, "all")]
        touched, ruined = sum(any(o.touches) for o in rows), sum(o.ruined for o in rows)
        row(task, len(rows), touched, *(sum(o.touches[k] for o in rows) for k in range(len(TOUCHES))), ruined)
    title = "Too high: runs within 10% of the best run's gain"
    head("too high", title, "rate", "runs", "plain", "guard", "made worse")
    for times in ("x3", "x10", "x100"):
        rows = [o for o in found if o.times == times]
        stock, saved = sum(o.plain <= 0.1 for o in rows), sum(o.guard <= 0.1 for o in rows)
        row(times, len(rows), stock, saved, sum(o.ruined for o in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="file of outcomes, made or gone on with")
    parser.add_argument("--quick", action="store_true", help="one net of two tasks")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--nets", nargs="+", default=NETS)
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8, 32])
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=list(OPTIMIZERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--verbose", action="store_true", help="one line a case")
    printed.add_argument(parser)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_utilities.core.rank_zero", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    tasks, nets = (QUICK, ["16"]) if args.quick else (args.tasks, args.nets)
    batches: list[int] = args.batches
    found: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        results = Results(args.results, folder)
        for task, net, batch in itertools.product(tasks, nets, batches):
            for optimizer, seed in itertools.product(args.optimizers, args.seeds):
                case = Case(task, net, batch, optimizer, seed, args.updates)
                rows = list(outcomes(results, case))
                found += rows
                if args.verbose:
                    cells = (f"{o.times} {o.plain:.2f}>{o.guard:.2f} {'+'.join(map(str, o.touches))}" for o in rows)
                    print(*case[:-1], *cells, sep=" | ", flush=True)
    tables(found)
    printed.write(parser, args, made=args.results)


if __name__ == "__main__":
    main()
