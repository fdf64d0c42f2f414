"""What `DivergenceGuard` costs per update, over a bare `Trainer`, beside Lightning's `SpikeDetection`; and a snapshot.

Every repetition runs all arms in a rotated order; printed are medians over repetitions of the difference to the bare
arm of the same repetition. A snapshot is timed against a plain copy of the same bytes into buffers made beforehand.

    python benchmarks/guard_overhead.py            # about ten minutes on one core
    python benchmarks/guard_overhead.py --quick    # about one
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lr.callbacks.divergence import DivergenceGuard
from lightning_lr.callbacks.warmup import Warmup
from lightning_lr.snapshot import Snapshot
from lightning_lr.source import Source

try:
    from pytorch_lightning.callbacks.spike import SpikeDetection
except ImportError:
    SpikeDetection = None

SIZES = {
    "tiny (MLP, 5k parameters)": {"width": 32, "depth": 1, "batch": 8, "updates": 600, "reps": 11},
    "60 ms (MLP, 4M parameters)": {"width": 1024, "depth": 4, "batch": 192, "updates": 60, "reps": 5},
}


def arms() -> dict[str, Callable[[], list[Callback]]]:
    found: dict[str, Callable[[], list[Callback]]] = {
        "bare": list,
        "Warmup alone (the ledger)": lambda: [Warmup(1)],
        "DivergenceGuard": lambda: [DivergenceGuard()],
    }
    if SpikeDetection is not None:
        found["SpikeDetection"] = lambda: [SpikeDetection(rtol=1e9, atol=1e9, exclude_batches_path=None)]
    return found


class Net(pl.LightningModule):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Linear(64, width), nn.ReLU()]
        for _ in range(depth):
            layers += [nn.Linear(width, width), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Linear(width, 10))

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


class Clock(Callback):
    """From the start of training to its end: (wall, CPU) in seconds."""

    def on_train_start(self, *_: Any) -> None:
        self.start = time.perf_counter(), time.process_time()

    def on_train_end(self, *_: Any) -> None:
        self.spent = time.perf_counter() - self.start[0], time.process_time() - self.start[1]


def spend(make: Callable[[], list[Callback]], size: dict[str, int]) -> tuple[float, float]:
    """Microseconds per update, (wall, CPU)."""
    updates, batch = size["updates"], size["batch"]
    torch.manual_seed(1)
    data = TensorDataset(torch.randn(batch, 64), torch.randint(10, (batch,)))
    loader = DataLoader(torch.utils.data.ConcatDataset([data] * updates), batch_size=batch)
    clock = Clock()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*make(), clock],
    )
    trainer.fit(Net(size["width"], size["depth"]), loader)
    return clock.spent[0] / updates * 1e6, clock.spent[1] / updates * 1e6


def snapshot_cost(reps: int) -> None:
    net = Net(1024, 3)
    optimizer: Any = net.configure_optimizers()
    net.training_step((torch.randn(8, 64), torch.randint(10, (8,)))).backward()
    optimizer.step()
    source = Source([net], [optimizer])
    snapshot = Snapshot(source)
    snapshot.take()
    live = [tensor.detach() for tensor in source.tensors().values()]
    buffers = [torch.empty_like(tensor) for tensor in live]
    pairs = []
    for _ in range(reps):
        began = time.perf_counter()
        for buffer, tensor in zip(buffers, live, strict=True):
            buffer.copy_(tensor)
        between = time.perf_counter()
        snapshot.take()
        pairs.append((between - began, time.perf_counter() - between))
    plain, ours = (statistics.median(pair[i] for pair in pairs) * 1e3 for i in (0, 1))
    ratio = statistics.median(b / a for a, b in pairs)
    size = snapshot.bytes / 2**20
    print(f"\nsnapshot of {size:.0f} MiB: {ours:.2f} ms, a plain copy {plain:.2f} ms ({ratio:.2f} times)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny model and three repetitions only")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning_fabric", "lightning_utilities"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("lightning_utilities.core.rank_zero").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    made = arms()
    names = list(made)
    for size_name, size in SIZES.items():
        if args.quick and not size_name.startswith("tiny"):
            continue
        reps = 3 if args.quick else size["reps"]
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for rep in range(reps + 1):
            for name in names[rep % len(names) :] + names[: rep % len(names)]:
                spent = spend(made[name], size)
                if rep > 0:  # the first repetition warms up
                    times[name].append(spent)
        bare = times["bare"]
        print(
            f"\n{size_name}, {reps} repetitions; bare: {statistics.median(w for w, _ in bare):.0f} us wall per update"
        )
        for name in names[1:]:
            row = []
            for clock in (0, 1):
                more = [a[clock] - b[clock] for a, b in zip(times[name], bare, strict=True)]
                ratio = [a[clock] / b[clock] for a, b in zip(times[name], bare, strict=True)]
                row.append(f"{statistics.median(more):+7.0f} us ({statistics.median(ratio):.3f})")
            print(f"  {name:28s} wall {row[0]}   CPU {row[1]}")
    snapshot_cost(20 if args.quick else 100)


if __name__ == "__main__":
    main()
