"""What `DivergenceGuard`, and all five callbacks, cost per update over a bare `Trainer`, beside `SpikeDetection`.

The arms run side by side, a block of updates each in turn; printed are differences of medians to the bare arm, and
their ratios: on one process, on two joined by gloo, and with a larger net. Beside them stands what nobody can do
without: five callbacks that do nothing, one norm of the gradients, one sum over the ranks. A snapshot is timed against
a plain copy of the same bytes into buffers made beforehand.

    python benchmarks/guard_overhead.py            # about ten minutes on two cores
    python benchmarks/guard_overhead.py --quick    # about one: no large net, one fit
    python benchmarks/guard_overhead.py --only 2   # of the parts below, this one
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import printed
import pytorch_lightning as pl
import torch
from timing import Clock, Net, Times, fit, in_turn, on_ranks, quiet, table
from torch.optim import Optimizer

import lightning_lr as llr
from lightning_lr.copies.snapshot import Snapshot
from lightning_lr.copies.source import Source

try:
    from pytorch_lightning.callbacks.spike import SpikeDetection
except ImportError:
    SpikeDetection = None

TINY = {"width": 32, "depth": 1, "batch": 8, "updates": 840}
LARGE = {"width": 1024, "depth": 3, "batch": 256, "updates": 240}

PARTS: dict[str, tuple[int, dict[str, int], int, int]] = {
    "tiny (MLP, 4k parameters), one process": (1, TINY, 20, 3),
    "tiny (MLP, 4k parameters), two processes": (2, TINY, 20, 3),
    "50 ms and more (MLP, 3.2M parameters), one process": (1, LARGE, 20, 5),
}
"""How many processes, the net, updates in a block, and fits."""


class Norm(pl.Callback):
    """Reads the norm of the gradients at every update, and does nothing with it."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Optimizer) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch.nn.utils.get_total_norm(grads).item()


class Reduce(pl.Callback):
    """Sums two numbers over the ranks at every update: no judge that sees every rank's loss can do with less."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Optimizer) -> None:
        numbers = torch.ones(2)
        torch.distributed.all_reduce(numbers)
        numbers.tolist()


def five() -> list[Any]:
    """All five; the finder waits for an update that never comes, since a sweep is no part of an update's cost."""
    return llr.autopilot("val_loss", finder={"at": 10**9})


def arms(size: dict[str, int], ranks: int) -> dict[str, Callable[[], list[Any]]]:
    found: dict[str, Callable[[], list[Any]]] = {
        "bare": list,
        "Warmup alone (the ledger)": lambda: [llr.Warmup(1)],
        "DivergenceGuard": lambda: [llr.DivergenceGuard()],
    }
    found["one norm of the gradients"] = lambda: [Norm()]
    if size is LARGE:
        return found
    found["all five"] = five
    found["five empty callbacks"] = lambda: [pl.Callback() for _ in range(5)]
    if ranks > 1:
        found["one sum over the ranks"] = lambda: [Reduce()]
    if SpikeDetection is not None:
        found["SpikeDetection"] = lambda: [SpikeDetection(rtol=1e9, atol=1e9, exclude_batches_path=None)]
    return found


def adamw(parameters: Any) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-4)


def timed(part: str, fits: int) -> Times:
    ranks, size, block, _ = PARTS[part]
    more = {"devices": ranks, "strategy": "ddp"} if ranks > 1 else {}

    def run(callbacks: list[Any], clock: Clock) -> list[tuple[float, float]]:
        net = Net(size["width"], size["depth"], adamw)
        return fit(callbacks, clock, net, size["batch"], size["updates"], **more)

    return in_turn(arms(size, ranks), run, block, fits)


def snapshot_cost(reps: int) -> None:
    net = Net(1024, 3, adamw)
    optimizer: Any = net.configure_optimizers()
    net.net(torch.randn(8, 64)).sum().backward()
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
    figures = [f"{size:.0f}", f"{ours:.2f}", f"{plain:.2f}", f"{ratio:.2f}"]
    printed.keep("snapshot", ["MiB", "snapshot, ms", "plain copy, ms", "ratio"], [[*figures]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny model and one fit only")
    parser.add_argument("--only", type=int, choices=range(1, len(PARTS) + 1), help="the number of one part")
    printed.add_argument(parser)
    args = parser.parse_args()
    quiet()
    for number, (part, (ranks, size, _, fits)) in enumerate(PARTS.items(), 1):
        if args.only not in (None, number) or (args.quick and size is LARGE and args.only is None):
            continue
        fits = 1 if args.quick else fits
        times = timed(part, fits) if ranks == 1 else on_ranks(ranks, timed, part, fits)
        print(f"\n{part}, {len(times['bare'])} rounds\n{table(part, times)}", flush=True)
        if size is LARGE:
            norm = "one norm of the gradients"
            print(f"  against {norm}:\n{table(f'{part}, against {norm}', times, norm)}", flush=True)
    if args.only is None:
        snapshot_cost(20 if args.quick else 100)
    printed.write(parser, args)


if __name__ == "__main__":
    main()
