"""A run that is killed: processes of its own, each of which ends at a place told beforehand, and what they leave."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from fsspec.implementations.local import LocalFileOpener
from torch import Tensor, nn

import lightning_lr as llr
from tests.fresh import context
from tests.small import Loader, Model, cosine, digits, held_out, pl, trainer

EPOCHS, BATCHES = 6, 17
"""Prime, so that no checkpoint of every so many updates falls on an epoch's last batch: resumed from there, Lightning
passes over the validation that follows."""

FAULTS = {35: "nan", 46: "weight", 90: "nan", 91: "nan", 96: "weight"}
"""By the batch's number in the run: a batch of NaN (a skip), a weight that breaks (a rewind)."""

SECONDS = 120
"""A process that has not ended after so many hangs."""

digits()  # read once, before any process is forked


# where it ends ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a run ends before its time.

    Args:
        kind: `batch` (it begins), `step` (within `training_step`), `gradient` (before the optimizer's step), `update`
            (within it: the weights have moved), `validation` (in its first batch), `validating` (in its second), or of
            a checkpoint: `write` (into the temporary file), `rename` (just before it), `copy` (to the final name, where
            that is on another file system), `remove` (of the one before); `outside`: at any instant.
        batch: the first one, counted over all epochs from 0, at which it ends there.
        way: `kill`, `terminate`, `raise` or `interrupt`.
        share: how much of a checkpoint is written by then.
        rank: the only one that it happens to; None: all of them.
    """

    kind: str
    batch: int
    way: str = "kill"
    share: float = 0.5
    rank: int | None = None


class End:
    """Ends this process at its place, once."""

    def __init__(self, place: Place | None, fit: Any) -> None:
        self.place, self._fit = place, fit

    def here(self, kind: str) -> Place | None:
        """The place, if this is it."""
        place = self.place
        return place if place is not None and place.kind == kind and batch_of_run(self._fit) >= place.batch else None

    def reached(self, kind: str) -> None:
        """Ends the process if this is the place."""
        place = self.here(kind)
        if place is None:
            return
        self.place = None
        if place.way == "raise":
            raise RuntimeError("the user's own")
        if place.way == "interrupt":
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGTERM if place.way == "terminate" else signal.SIGKILL)

    def while_saving(self) -> None:
        """From now on checkpoints break off too: Lightning writes a temporary file, moves it, and removes the last."""
        io = type(self._fit.strategy.checkpoint_io)
        write, move, remove = LocalFileOpener.write, shutil.move, io.remove_checkpoint

        def written(opener: Any, data: bytes) -> int:
            if place := self.here("write"):
                write(opener, data[: int(len(data) * place.share)])
                opener.flush()
                self.reached("write")
            return write(opener, data)

        def moved(source: str, target: str) -> Any:
            self.reached("rename")
            if place := self.here("copy"):
                # as `shutil.move` does where the two are not on one file system
                data = Path(source).read_bytes()
                Path(target).write_bytes(data[: int(len(data) * place.share)])
                self.reached("copy")
            return move(source, target)

        def removed(*args: Any) -> None:
            self.reached("remove")
            remove(*args)

        LocalFileOpener.write, shutil.move, io.remove_checkpoint = written, moved, removed


# what runs -------------------------------------------------------------------------------------------------------


def batch_of_run(fit: Any) -> int:
    """Counted over all epochs from 0 (Lightning's own count counts a batch that raised and comes again twice)."""
    return fit.current_epoch * BATCHES + fit.fit_loop.epoch_loop.batch_idx


class Fragile(Model):
    """A small net whose batches go wrong by their number in the run, and that ends where it is told."""

    end: End

    def __init__(self, leg: Leg) -> None:
        # half of a cosine: the rate is still high when the run ends
        super().__init__(lambda module: cosine(module, 2 * BATCHES * EPOCHS, 0.05), hidden=16)
        self.norm = nn.BatchNorm1d(64) if leg.norm else nn.Identity()
        self._sharded = leg.sharded

    def configure_model(self) -> None:
        if self._sharded:
            from torch.distributed.fsdp import fully_shard

            for part in (self.norm, self.backbone, self.head):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])

    def on_train_start(self) -> None:
        super().on_train_start()
        for optimizer in self.trainer.optimizers:
            handle = optimizer.register_step_post_hook(lambda *_: self.end.reached("update"))
            # before the ledger's own hook, which takes the rates back
            optimizer._optimizer_step_post_hooks.move_to_end(handle.id, last=False)

    def on_train_batch_start(self, *_: Any) -> None:
        self.end.reached("batch")

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.end.reached("step")
        fault = FAULTS.get(batch_of_run(self.trainer))
        if fault == "weight":
            with torch.no_grad():
                _local(self.head.weight)[0, :] = torch.nan
        images = batch[0] * float("nan") if fault == "nan" else batch[0]
        loss = nn.functional.cross_entropy(self(self.norm(images)), batch[1])
        self.log("train_loss", loss, sync_dist=True)
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.end.reached("gradient")

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.end.reached("validating" if batch_idx == 1 else "validation")
        self.log("val_loss", nn.functional.cross_entropy(self(self.norm(batch[0])), batch[1]), sync_dist=True)


class Counted(Loader):
    """Its state is how far training has come, not what was handed out: a batch that raised comes again."""

    progress: Any

    def state_dict(self) -> dict[str, int]:
        return {"at": self.progress.current.processed}


def callbacks(lag: Any = 0) -> list[Any]:
    return [
        llr.Warmup(12),
        llr.PlateauDecay("val_loss", factor=0.7, patience=0, threshold=0.5, cooldown=1),
        llr.DivergenceGuard(snapshot_every=6, lag=lag, save_snapshots=True),
        llr.LRFinder(at=[0, 40], steps=20, min_lr=1e-4, progress_bar=False),
        llr.LRMonitor(momentum=True),
        llr.PlateauDecay("train_loss", factor=0.9, test="trend", patience=40, name="Trend"),
        llr.Cooldown(epochs=1, shape="1-sqrt"),
    ]


class Diary(pl.Callback):
    """One line for each batch, in a file that outlives the process (it is the process that dies, not the machine)."""

    def __init__(self, path: Path, made: list[Any]) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        self._made = {callback.name: callback for callback in made}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        guard, finder = self._made["DivergenceGuard"], self._made["LRFinder"]
        line = {
            "batch": batch_of_run(trainer),
            "rates": pl_module.trace[-1],
            "updates": guard.ledger.updates(0),
            "factors": {name: guard.ledger.factor(name, 0, 0) for name in self._made},
            "sweeping": finder.sweeping,
            "skips": guard.skips,
            "rewinds": guard.rewinds,
            "weights": _digest(pl_module.parameters()),
            # what DDP overwrites by rank zero's at the next batch is nobody's decision
            "buffers": _digest(pl_module.buffers() if trainer.is_global_zero else ()),
        }
        os.write(self._file, (json.dumps(line) + "\n").encode())


def _digest(tensors: Any) -> int:
    return zlib.crc32(b"".join(_local(tensor.detach()).numpy().tobytes() for tensor in tensors))


def _local(tensor: Any) -> Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


@dataclass(frozen=True)
class Leg:
    """One process's part of a run: from a checkpoint to the end, or to the place where it ends before.

    Args:
        root: what all legs of a run share.
        number: of the leg, from 0.
        checkpoint: from which it starts; None: from the beginning.
        place: where it ends; None: where it should.
        every: updates between two checkpoints, 7 or more (see `BATCHES`); the others are saved at an epoch's end where
            it is even, on validation where it is odd. None: a checkpoint is saved on an exception only.
        lag: the guard's.
        epochs: of the run.
        norm: whether the model has batch norm, whose statistics move before anything else does.
        sharded: whether the weights are spread over the processes (FSDP2).
        size: processes.
        rank: of this one.
        port: where they meet.
        done: batches of the run when it starts.
    """

    root: Path
    number: int = 0
    checkpoint: Path | None = None
    place: Place | None = None
    every: int | None = 7
    lag: int = 0
    epochs: int = EPOCHS
    norm: bool = True
    sharded: bool = False
    size: int = 1
    rank: int = 0
    port: int = 0
    done: int = 0

    def run(self) -> None:
        """In a process of its own."""
        self.settle()
        made = callbacks(self.lag)
        settings: dict[str, Any] = {"devices": self.size, "strategy": "ddp"} if self.size > 1 else {}
        if self.sharded:
            settings["strategy"] = pl.strategies.ModelParallelStrategy(self.size, 1)
        fit = trainer(
            self.root,
            callbacks=[*made, Diary(self.root / f"diary-{self.rank}.jsonl", made), *self._saving()],
            max_epochs=self.epochs,
            enable_checkpointing=True,
            logger=pl.loggers.CSVLogger(self.root, "csv", f"leg-{self.number}"),
            **settings,
        )
        model, batches = Fragile(self), Counted(BATCHES, 8, offset=112 * self.rank)
        here = self.place is not None and self.place.rank in (None, self.rank)
        model.end = End(self.place if here else None, fit)
        model.end.while_saving()
        batches.progress = fit.fit_loop.epoch_loop.batch_progress
        fit.fit(model, batches, held_out(16), ckpt_path=None if self.checkpoint is None else str(self.checkpoint))
        model.end.place = None
        (self.root / f"changes-{self.rank}.json").write_text(json.dumps([asdict(c) for c in made[4].changes]))
        fit.save_checkpoint(self.root / "end.ckpt")

    def settle(self) -> None:
        """Its own output, temporary files and place among the ranks."""
        out = os.open(self.root / f"out-{self.number}-{self.rank}.txt", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.dup2(out, 1)
        os.dup2(out, 2)
        tempfile.tempdir = str(self.root)
        torch.set_num_threads(1)
        for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)
        if self.size > 1:
            os.environ.update(
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(self.port),
                RANK=str(self.rank),
                LOCAL_RANK=str(self.rank),
                WORLD_SIZE=str(self.size),
                LOCAL_WORLD_SIZE=str(self.size),
                GROUP_RANK="0",
                TORCHELASTIC_RUN_ID="tests",
            )

    def _saving(self) -> list[Any]:
        if self.every is None:
            return [pl.callbacks.OnExceptionCheckpoint(self.root / "exception")]
        return [
            pl.callbacks.ModelCheckpoint(self.root / "steps", "{step}", every_n_train_steps=self.every),
            pl.callbacks.ModelCheckpoint(self.root / "epochs", "{step}", save_on_train_epoch_end=self.every % 2 == 0),
        ]


# what the user does ----------------------------------------------------------------------------------------------


def run(leg: Any, seconds: float = SECONDS) -> list[int]:
    """Runs a leg in as many processes as it has ranks; returns their exit codes, by rank.

    Raises:
        AssertionError: when one of them hangs.
    """
    forked = context()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [forked.Process(target=replace(leg, rank=rank, port=port).run) for rank in range(leg.size)]
    leg.root.mkdir(exist_ok=True)
    until = time.monotonic() + seconds
    for process in processes:
        process.start()
    if leg.place is not None and leg.place.kind == "outside":
        while processes[0].is_alive() and len(diary(leg.root)) <= leg.place.batch and time.monotonic() < until:
            time.sleep(0.001)
        processes[0].kill()
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    hanging = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
        process.join()
    assert not hanging, f"ranks {hanging} hang: {leg}"
    return [process.exitcode for process in processes]


def newest(root: Path) -> Path | None:
    """The checkpoint from which a user goes on: the youngest one that can be loaded."""
    for path in sorted(root.glob("*/*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        with contextlib.suppress(Exception):
            read(path)
            return path
    return None


def read(checkpoint: Path) -> dict[str, Any]:
    """All that a checkpoint holds; of one of sharded weights, all but them and the optimizer's state."""
    return torch.load(checkpoint / "meta.pt" if checkpoint.is_dir() else checkpoint, weights_only=True)


def survive(first: Leg, place: Callable[[int], Place | None]) -> list[Leg]:
    """Goes on from the newest checkpoint each time that the run ended before its time, until it has finished.

    Args:
        first: the first leg.
        place: where the next leg ends, by the batches done; None: where it should.
    """
    legs: list[Leg] = []
    while not (first.root / "end.ckpt").exists():
        checkpoint = newest(first.root)
        done = 0 if checkpoint is None else read(checkpoint)["global_step"]
        leg = replace(first, number=len(legs), checkpoint=checkpoint, place=place(done), done=done)
        codes = run(leg)
        killed = leg.place is not None and leg.place.way == "kill"
        assert (first.root / "end.ckpt").exists() or leg.place is not None, (leg, codes, said(leg))
        # of several ranks one that outlives the others ends with an error
        assert not killed or set(codes) in ({0}, {-9}, {-9, 1}), (leg, codes, said(leg))
        legs.append(leg)
    return legs


def said(leg: Leg) -> str:
    """What the leg's processes have printed."""
    return "\n".join(path.read_text() for path in sorted(leg.root.glob(f"out-{leg.number}-*.txt")))


def diary(root: Path, rank: int = 0) -> list[dict[str, Any]]:
    """One line for each batch of the run; of a batch that was made again, the last."""
    path = root / f"diary-{rank}.jsonl"
    # without what comes after the last line's end: it may be read while it is written
    lines = [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []
    return [line for _, line in sorted({line["batch"]: line for line in lines}.items())]


def differences(a: Any, b: Any, at: str = "") -> list[str]:
    """The places at which two nested states are not the same, bit for bit."""
    if type(a) is not type(b):
        return [f"{at}: {a!r} / {b!r}"]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{at}: {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [line for key in a for line in differences(a[key], b[key], f"{at}/{key}")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [f"{at}: {len(a)} / {len(b)} items"]
        return [line for i, (x, y) in enumerate(zip(a, b, strict=True)) for line in differences(x, y, f"{at}/{i}")]
    if isinstance(a, Tensor):
        return [] if torch.equal(a, b) else [f"{at}: tensors"]
    return [] if a == b else [f"{at}: {a!r} / {b!r}"]
