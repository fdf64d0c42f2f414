"""What `lightning_lr` costs and keeps on GPUs: figures, each beside its target, and `pass` or `FAIL`.

Nothing below has been run on a GPU by those who wrote it: these are targets, and the script is how to confirm them.

    python benchmarks/gpu.py                  # one GPU, a few minutes
    python benchmarks/gpu.py --devices 4      # the same under DDP over NCCL, with a spy on all collectives
    python benchmarks/gpu.py --cpu --quick    # without a GPU: what can be run of it, in seconds

W stands for the bytes of the model's weights. It should print, on each line `pass`:

    syncs of an update, over bare    ledger 0, a tensor rate at most 1, guard lag=0 at most 1, guard lag=1 0
    waits of an update, guard lag=1  0 (its numbers were sent an update ago)
    time of an update, over bare     guard at most 600 us (tiny) and 3% (transformer of 100M); ledger 100 us and 1%
    device memory, over bare         at most 0.02 W + 8 MB: at rest, in a trial, in a rewind
    host memory of copies            at most 6 W / ranks (AdamW, two copies of 3 W), and 1 W more in a trial
    pinned memory                    at most 1.05 times the copies: nothing is rounded up to a power of two
    a copy                           at least 90% of its time hidden behind the next batches
    a rewind                         weights and optimizer state are those of an earlier update, bit for bit
    a NaN under a gradient scaler    dropped: weights and optimizer state as before
    a compiled step                  no frame compiled more at a tensor rate that moves than at one that stands still
    a checkpoint                     at most 1.01 times a bare one
    after `fit`                      no copies are held, and no more device memory than after a bare run
    collectives (several ranks)      all on the strategy's root device
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import printed
import pytorch_lightning as pl
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, TensorDataset

import lightning_lr as llr

MB = 2**20
WARM = 20
"""Updates before anything is counted."""

COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "broadcast", "reduce_scatter_tensor")


class Size(NamedTuple):
    """A transformer, and batches of random tokens."""

    width: int
    layers: int
    tokens: int
    batch: int


TINY, LARGE, QUICK = Size(32, 1, 64, 8), Size(768, 12, 18_000, 16), Size(64, 2, 256, 8)
LENGTH = 64


class Net(pl.LightningModule):
    """Predicts tokens; breaks at batches by number.

    Args:
        size: of the model.
        faults: `nan` (the loss), `weights` (set to NaN), by batch.
        tensor: whether the rate is a tensor on the device.
        scheduled: whether a schedule writes it at each update.
        compiled: a backend for `torch.compile` of the optimizer's step, or empty.
    """

    def __init__(
        self,
        size: Size,
        faults: dict[int, str] | None = None,
        *,
        tensor: bool = False,
        scheduled: bool = False,
        compiled: str = "",
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.size, self.faults, self.tensor, self.scheduled, self.compiled = (
            size,
            faults or {},
            tensor,
            scheduled,
            compiled,
        )
        block = nn.TransformerEncoderLayer(size.width, 4, 4 * size.width, dropout=0.0, batch_first=True)
        self.embed = nn.Embedding(size.tokens, size.width)
        self.blocks = nn.TransformerEncoder(block, size.layers, enable_nested_tensor=False)
        self.head = nn.Linear(size.width, size.tokens, bias=False)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        # a compiled step must not come to depend on the batch
        fault = self.faults.get(batch_idx) if self.faults else None
        if fault == "weights":
            with torch.no_grad():
                self.head.weight.fill_(float("nan"))
        logits = self.head(self.blocks(self.embed(batch[0])))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[0].flatten())
        return loss * float("nan") if fault == "nan" else loss

    def configure_optimizers(self) -> Any:
        rate = torch.tensor(1e-3, device=self.device) if self.tensor else 1e-3
        optimizer = torch.optim.AdamW(self.parameters(), lr=rate)
        if self.compiled:
            optimizer.step = torch.compile(optimizer.step, backend=self.compiled)
        if not self.scheduled:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 1.0 / (1.0 + 0.01 * update))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def weight_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.parameters())


class Meter(pl.Callback):
    """Time, waits and memory of a run from its update `WARM` on; and what the guard holds at each batch's end."""

    def __init__(self, bench: Bench, guard: Any = None) -> None:
        self.bench, self.guard = bench, guard
        self.updates = self.syncs = self.waits = self.copies = self.peak = self.rested = 0
        self.wrong: set[str] = set()
        self.seen: list[tuple[int, str]] = []
        self.matches: list[bool] = []
        self.digests = False
        self.inside = contextlib.ExitStack()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if self.digests:
            self.seen.append((0 if self.guard is None else self.guard.rewinds, digest(trainer, module)))
        if batch_idx == WARM:
            self.caught = self.inside.enter_context(self.bench.counting(self))
            self.began = self.bench.now()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.updates += batch_idx >= WARM
        if self.guard is not None and self.guard.copy_pair is not None:
            self.copies = max(self.copies, self.guard.copy_pair.bytes)
        if self.digests and self.guard.rewinds > self.seen[-1][0]:
            self.matches.append(digest(trainer, module) in {before for _, before in self.seen[:-1]})

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self.spent = (self.bench.now() - self.began) / max(self.updates, 1)
        self.syncs = sum("synchronizing" in str(w.message) for w in self.caught)
        self.inside.close()

    def on_exception(self, *_: Any) -> None:
        self.inside.close()


def digest(trainer: Any, module: Any) -> str:
    """The bits of weights and optimizer state."""
    state = [*module.parameters(), *tree_leaves([list(o.state.values()) for o in trainer.optimizers])]
    bits = hashlib.sha1()
    for tensor in state:
        bits.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return bits.hexdigest()


class Bench:
    """Runs, and judges what they cost.

    Args:
        cpu: whether to run on the CPU.
        quick: a small model and few updates.
        devices: processes.
    """

    def __init__(self, cpu: bool, quick: bool, devices: int) -> None:
        self.cpu, self.quick, self.devices = cpu, quick, devices
        self.first = int(os.environ.get("LOCAL_RANK", 0)) == 0
        self.failed = 0
        self.lines: list[list[object]] = []
        self.root = tempfile.mkdtemp()

    def say(self, what: str, figure: str, target: str, passed: bool | None) -> None:
        self.failed += passed is False
        word = {True: "pass", False: "FAIL", None: "    "}[passed]
        self.lines.append([what, figure, target, word.strip()])
        if self.first:
            print(f"{word}  {what:42s} {figure:>26s}   {target}", flush=True)

    def now(self) -> float:
        if not self.cpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextlib.contextmanager
    def counting(self, meter: Meter) -> Iterator[list[warnings.WarningMessage]]:
        """Notes host syncs, waits for events that were not over, and the devices of collectives."""
        event, wait = torch.cuda.Event, torch.cuda.Event.synchronize
        kept = {name: getattr(torch.distributed, name) for name in COLLECTIVES if torch.distributed.is_available()}

        def waited(self: Any) -> None:
            meter.waits += not self.query()
            wait(self)

        def spied(name: str) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                own = meter.own_device
                meter.wrong |= {name for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.device != own}
                return kept[name](*args, **kwargs)

            return call

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            event.synchronize = waited
            for name in kept:
                setattr(torch.distributed, name, spied(name))
            if not self.cpu:
                torch.cuda.set_sync_debug_mode("warn")
            try:
                yield caught
            finally:
                event.synchronize = wait
                for name, function in kept.items():
                    setattr(torch.distributed, name, function)
                if not self.cpu:
                    torch.cuda.set_sync_debug_mode("default")

    def run(
        self, net: Net, callbacks: list[Any], updates: int, save: str = "", digests: bool = False, **more: Any
    ) -> Meter:
        """One `fit`."""
        guard = next((c for c in callbacks if isinstance(c, llr.DivergenceGuard)), None)
        meter = Meter(self, guard)
        meter.digests = digests
        generator = torch.Generator().manual_seed(1)
        batch, ranks = net.size.batch, max(self.devices, 1)
        data = torch.randint(net.size.tokens, (batch, LENGTH), generator=generator).repeat(updates * ranks, 1)
        trainer = pl.Trainer(
            accelerator="cpu" if self.cpu else "gpu",
            devices=self.devices,
            strategy="ddp" if self.devices > 1 else "auto",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=self.root,
            # what has to be done in the run's last moments, a meter does first
            callbacks=[meter, *callbacks],
            **more,
        )
        meter.own_device = trainer.strategy.root_device
        if not self.cpu:
            torch.cuda.reset_peak_memory_stats()
            getattr(torch.cuda, "reset_peak_host_memory_stats", int)()
        trainer.fit(net, DataLoader(TensorDataset(data), batch_size=batch))
        meter.peak = 0 if self.cpu else torch.cuda.max_memory_allocated()
        meter.rested = 0 if self.cpu else torch.cuda.memory_allocated()
        if save:
            trainer.save_checkpoint(save)
        return meter


# the checks --------------------------------------------------------------------------------------------------------


def arms() -> dict[str, Callable[[], list[Any]]]:
    return {
        "bare": list,
        "ledger": lambda: [llr.Warmup(1000)],
        "guard lag=0": lambda: [llr.DivergenceGuard(snapshot_every=100_000)],
        "guard lag=1": lambda: [llr.DivergenceGuard(snapshot_every=100_000, lag=1)],
    }


def cost(bench: Bench, name: str, size: Size, updates: int, repetitions: int) -> None:
    """Syncs and time of an update."""
    seen: dict[str, list[Meter]] = {}
    for _ in range(repetitions):
        for arm, made in arms().items():
            seen.setdefault(arm, []).append(bench.run(Net(size), made(), WARM + updates))
    plain = statistics.median(m.spent for m in seen["bare"])
    bench.say(f"{name}: bare", f"{plain * 1e6:.0f} us an update", "", None)
    for arm, meters in seen.items():
        if arm == "bare":
            continue
        more = statistics.median(a.spent - b.spent for a, b in zip(meters, seen["bare"], strict=True))
        most, share = (600e-6, 0.03) if "guard" in arm else (100e-6, 0.01)
        passed = (more <= most if name == "tiny" else more <= share * plain) if not bench.cpu else None
        target = f"<= {most * 1e6:.0f} us" if name == "tiny" else f"<= {share:.0%}"
        bench.say(f"{name}: {arm}", f"{more * 1e6:+.0f} us ({more / plain:+.1%})", target, passed)
        if not bench.cpu:
            syncs = (meters[-1].syncs - seen["bare"][-1].syncs) / updates
            limit = 1.0 if arm == "guard lag=0" else 0.0
            bench.say(f"{name}: {arm}, host syncs", f"{syncs:.2f} an update", f"<= {limit:.0f}", syncs <= limit + 0.01)
            if arm == "guard lag=1":
                waits = meters[-1].waits / updates
                bench.say(f"{name}: {arm}, waits", f"{waits:.2f} an update", "0", waits <= 0.01)


def tensor_rate(bench: Bench, size: Size, updates: int) -> None:
    if bench.cpu:
        return
    bare, ours = (
        bench.run(Net(size, tensor=True, scheduled=True), callbacks, WARM + updates)
        for callbacks in ([], [llr.Warmup(1000)])
    )
    syncs = (ours.syncs - bare.syncs) / updates
    bench.say("a tensor rate under a schedule, host syncs", f"{syncs:.2f} an update", "<= 1", syncs <= 1.01)


def memory(bench: Bench, size: Size, updates: int) -> None:
    """Device and host memory at rest, in a trial, in a rewind; and after `fit`."""
    net = Net(size)
    weight, ranks = net.weight_bytes, max(bench.devices, 1)
    bare = bench.run(net, [], updates)
    del net
    at = WARM + 30
    cases: dict[str, dict[int, str]] = {
        "at rest": {},
        "in a trial": dict.fromkeys(range(at, at + 3), "nan"),
        "in a rewind": {at: "weights"},
    }
    for case, faults in cases.items():
        guard = llr.DivergenceGuard(snapshot_every=10)
        run = bench.run(Net(size, faults), [guard], updates)
        numbers = guard.summary()
        tried = sum(count for what, count in numbers.items() if what.startswith("trials_"))
        happened = {"at rest": True, "in a trial": tried > 0, "in a rewind": numbers["rewinds"] > 0}[case]
        bench.say(f"{case}: it happened", str(happened).lower(), "true", happened)
        copies, most = run.copies / weight, 6.0 / ranks + (case == "in a trial") + 0.1
        bench.say(f"{case}: host memory of copies", f"{copies:.2f} W", f"<= {most:.2f} W", copies <= most)
        if not bench.cpu:
            more = run.peak - bare.peak
            figure, passed = f"{more / weight:+.3f} W ({more / MB:.0f} MB)", more <= 0.02 * weight + 8 * MB
            bench.say(f"{case}: device memory over bare", figure, "<= 0.02 W + 8 MB", passed)
            pinned(bench, case, run.copies)
        held = 0 if guard.copy_pair is None else guard.copy_pair.bytes
        bench.say(f"{case}: copies held after fit", f"{held / weight:.2f} W", "0", held == 0)
        if not bench.cpu:
            left = run.rested - bare.rested
            bench.say(f"{case}: device memory after fit", f"{left / MB:+.1f} MB", "<= 1 MB", left <= MB)


def pinned(bench: Bench, case: str, copies: int) -> None:
    stats = getattr(torch.cuda, "host_memory_stats", dict)()
    peak = stats.get("allocated_bytes.peak")
    if peak is None or not copies:
        bench.say(f"{case}: pinned memory", "not told by this torch", "", None)
    else:
        bench.say(
            f"{case}: pinned memory", f"{peak / copies:.2f} x copies", "<= 1.05 (first case)", peak <= 1.05 * copies
        )


def copying(bench: Bench, size: Size, updates: int) -> None:
    """The time of a copy, and what of it is hidden: what copies add to the run, beside a plain copy of the bytes."""
    every = 10
    without, often = (
        bench.run(Net(size), [llr.DivergenceGuard(snapshot_every=interval)], WARM + updates)
        for interval in (100_000, every)
    )
    device = torch.device("cpu" if bench.cpu else "cuda")
    source = torch.empty(max(often.copies // 2, 1), dtype=torch.uint8, device=device)
    target = torch.empty_like(source, device="cpu", pin_memory=not bench.cpu)
    target.copy_(source)
    began = bench.now()
    target.copy_(source, non_blocking=True)
    plain = bench.now() - began
    visible = max(often.spent - without.spent, 0.0) * every
    hidden = 1.0 - min(visible / plain, 1.0)
    figure = f"{plain * 1e3:.2f} ms, {hidden:.0%} hidden"
    bench.say("a copy", figure, ">= 90% hidden", None if bench.cpu else hidden >= 0.9)


def bits(bench: Bench, size: Size) -> None:
    """What comes back, and what is dropped."""
    at = WARM + 35
    guard = llr.DivergenceGuard(snapshot_every=10)
    run = bench.run(Net(size, {at: "weights"}), [guard], at + 10, digests=True)
    bench.say("a rewind, bit for bit", f"{sum(run.matches)} of {len(run.matches)}", "all", run.matches == [True])
    guard = llr.DivergenceGuard(snapshot_every=10)
    run = bench.run(Net(size, {at: "nan"}), [guard], at + 10, digests=True, precision="16-mixed")
    still = len(run.seen) > at + 1 and run.seen[at][1] == run.seen[at + 1][1]
    moved = run.seen[at + 1][1] != run.seen[-1][1]
    bench.say("a NaN under a gradient scaler", f"dropped {guard.skips}", "1, then goes on", still and moved)


def compiled(bench: Bench, size: Size, updates: int) -> None:
    frames = []
    backend = "eager" if bench.cpu else "inductor"
    for callbacks in ([], [llr.DivergenceGuard()], [llr.Warmup(1000)]):
        torch._dynamo.reset()
        counters.clear()
        bench.run(Net(size, tensor=True, compiled=backend), callbacks, updates)
        frames.append(counters["frames"]["total"])
    _, still, moving = frames
    bench.say(
        "a compiled step, a tensor rate that moves", f"{moving} frames, {still} still", "as many", moving == still
    )


def checkpoint(bench: Bench, size: Size, updates: int) -> None:
    sizes = []
    for callbacks in ([], [llr.Warmup(10), llr.DivergenceGuard(), llr.LRMonitor()]):
        path = Path(bench.root) / f"{len(sizes)}.ckpt"
        bench.run(Net(size), callbacks, updates, save=str(path))
        sizes.append(path.stat().st_size if path.exists() else 1)
    ratio = sizes[1] / sizes[0]
    bench.say("a checkpoint's size", f"{ratio:.3f} x bare", "<= 1.01", ratio <= 1.01 if sizes[0] > MB else None)


def collectives(bench: Bench, size: Size) -> None:
    if bench.devices < 2:
        return
    at = WARM + 35
    faults = {at: "nan", **dict.fromkeys(range(at + 10, at + 13), "nan"), at + 40: "weights"}
    callbacks = [llr.LRFinder(steps=20, progress_bar=False), llr.Warmup(10), llr.DivergenceGuard(snapshot_every=10)]
    run = bench.run(Net(size, faults), callbacks, at + 60)
    bench.say("collectives on another device", ", ".join(sorted(run.wrong)) or "none", "none", not run.wrong)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="run on the CPU what can be run there")
    parser.add_argument("--quick", action="store_true", help="a small model and few updates")
    parser.add_argument("--devices", type=int, default=1, help="processes, one for each GPU")
    printed.add_argument(parser)
    args = parser.parse_args()
    if not args.cpu and not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py needs a GPU, and torch finds none: --cpu --quick runs what can be run without")
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning_fabric", "lightning_utilities.core.rank_zero", "torch._dynamo"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1 if args.cpu else torch.get_num_threads())
    bench = Bench(args.cpu, args.quick, args.devices)
    large = QUICK if args.quick else LARGE
    updates, repetitions = (20, 1) if args.quick else (200, 5)
    memory(bench, large, WARM + 60)
    cost(bench, "tiny", TINY, updates, repetitions)
    cost(bench, "transformer", large, updates // 4, 1 if args.quick else 3)
    tensor_rate(bench, TINY, updates)
    copying(bench, large, updates)
    bits(bench, QUICK)
    compiled(bench, TINY, WARM + 10)
    checkpoint(bench, large, WARM + 2)
    collectives(bench, QUICK)
    if bench.first:
        print(f"{bench.failed} failed")
        printed.keep("checks", ["what", "figure", "target", "judged"], bench.lines)
        printed.write(parser, args)
    sys.exit(bench.failed > 0)


if __name__ == "__main__":
    main()
